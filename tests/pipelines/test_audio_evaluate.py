"""mambaaudio evaluate, score, info, report: what they print, save and refuse."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mambaaudio.synth import melody, write_notes
from mambaaudio.waveform import read
from mambapipelines.cli import audio

RATE = 4000
SMALL = (
    "--data.window", "2048", "--data.tokens", "4096", "--model.d_model", "8",
    "--model.n_layer", "1", "--trainer.max_steps", "6", "--trainer.val_check_interval", "3",
    "--trainer.log_every_n_steps", "2", "--trainer.threads", "1", "--trainer.accelerator", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_notes(tmp_path_factory.mktemp("notes"), rate=RATE, seconds=0.2, takes=3)


@pytest.fixture(scope="module")
def run(notes: Path) -> Path:
    """A finished run on labelled notes."""
    folder = notes.parent / "run"
    assert audio.main(["fit", "--data.samples", str(notes), "--run", str(folder), *SMALL]) == 0
    return folder


def call(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = audio.main([str(part) for part in argv])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_evaluate_and_report(run: Path, notes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model", run, "--device", "cpu", "--threads", 1)
    code, out, _ = call(capsys, "evaluate", *options, "--without", "string", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["split"] == "test"
    assert set(found["total"]["floors"]) == {"unigram", "bigram", "linear prediction"}
    assert found["without"][0]["name"] == "string"
    assert json.loads((run / "evaluation" / "test.json").read_text()) == found
    code, out, _ = call(
        capsys, "evaluate", *options, "--samples", notes, "--split", "val", "--no-floors",
        "--contexts", "128", "--untold",
    )  # fmt: skip
    assert code == 0
    assert "not told" in out
    assert "Not against context length: no recording is longer" in out
    # The report finds both, and makes sounds beside real ones.
    code, out, err = call(capsys, "report", run, "--pairs", 2, "--seconds", 1, "--device", "cpu")
    assert code == 0, err
    page = Path(out.strip())
    assert page == run / "report" / "index.html"
    text = page.read_text()
    beside = re.findall(r'src="([^"]+)"', text)
    assert len([name for name in beside if name.endswith(".wav")]) == 4
    for name in beside:
        assert (page.parent / name).stat().st_size > 100
    assert "linear prediction" in text
    sound, rate = soundfile.read(page.parent / "pair-00-real.wav")
    assert rate == RATE
    assert RATE // 5 <= len(sound) <= RATE


def test_each_channel_trains_and_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for i in range(5):
        waves = [melody(1, RATE, np.random.default_rng(2 * i + j)) for j in range(2)]
        soundfile.write(tmp_path / "in" / f"{i}.wav", np.stack(waves, 1), RATE, subtype="PCM_16")
    run = tmp_path / "run"
    code, _, err = call(
        capsys, "fit", "--data.samples", tmp_path / "in", "--run", run, *SMALL,
        "--data.channel", "each", "--data.validation", "0.2",
    )  # fmt: skip
    assert code == 0, err
    assert "train 8" in err
    options = ("--model", run, "--device", "cpu", "--split", "val", "--no-floors", "--json")
    code, out, _ = call(capsys, "evaluate", *options)
    left, right = (row["name"] for row in json.loads(out)["files"])
    assert (left[-5:], right) == ("#left", left.replace("#left", "#right"))
    code, out, _ = call(capsys, "evaluate", *options, "--channel", "right")
    assert [row["name"] for row in json.loads(out)["files"]] == [left.removesuffix("#left")]


def test_a_report_of_long_recordings_continues_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        wave = melody(3, RATE, np.random.default_rng(i))
        soundfile.write(tmp_path / f"{i}.wav", wave, RATE, subtype="PCM_16")
    run = tmp_path / "run"
    assert audio.main(["fit", "--data.samples", str(tmp_path), "--run", str(run), *SMALL]) == 0
    code, out, err = call(capsys, "report", run, "--pairs", 1, "--seconds", 2, "--device", "cpu")
    assert code == 0
    assert "going on from" in err
    folder = Path(out.strip()).parent
    real, made = (read(folder / f"pair-00-{kind}.wav") for kind in ("real", "generated"))
    heard = len(real) // 4
    assert len(made) == len(real)
    np.testing.assert_allclose(made[:heard], real[:heard], atol=1e-4)
    assert np.abs(made[heard:] - real[heard:]).max() > 0.01


def test_score(run: Path, notes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(notes.parent.glob("*.wav"))[:2] or sorted(notes.parent.rglob("*.wav"))[:2]
    options = ("--model", run, "--device", "cpu", "--threads", 1)
    code, out, _ = call(capsys, "score", *options, *files, "--floor")
    assert code == 0
    header, *rows = out.splitlines()
    assert header.split("\t") == ["file", "seconds", "bits_per_sample", "linear_prediction"]
    assert [row.split("\t")[0] for row in rows] == [str(f) for f in files]
    code, out, _ = call(capsys, "score", *options, files[0], "--by-second")
    assert out.splitlines()[1].split("\t")[1] == "0"
    wave = soundfile.read(files[0])[0]
    both = run.parent / "both.wav"
    soundfile.write(both, np.stack([wave, 0 * wave], 1), RATE, subtype="PCM_16")
    code, out, _ = call(capsys, "score", *options, both, files[0], "--channel", "each")
    left, right, alone = [row.split("\t") for row in out.splitlines()[1:]]
    assert [left[0], right[0]] == [f"{both}#left", f"{both}#right"]
    assert left[1:] == alone[1:]
    assert right[2] != left[2]
    code, out, err = call(capsys, "score", *options, both)
    assert "of its 2 channels, their mean is scored" in err
    bad = run.parent / "bad.wav"
    bad.write_text("no sound")
    code, out, err = call(capsys, "score", *options, files[0], bad)
    assert (code, out) == (1, "")  # said before the work
    assert "bad.wav" in err
    bad.unlink()
    code, _, err = call(capsys, "score", *options, files[0], "--label", "nonsense")
    assert code == 2
    assert "nonsense" in err


def test_info(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, short, text = (tmp_path / name for name in ("good.wav", "short.wav", "text.wav"))
    soundfile.write(good, np.zeros(RATE), RATE, subtype="PCM_16")
    short.write_bytes(good.read_bytes()[:3000])
    text.write_text("no sound")
    code, out, err = call(capsys, "info", good, short)
    assert (code, len(out.splitlines()), err) == (0, 3, "")
    code, out, err = call(capsys, "info", "--verify", short, text, good)
    assert code == 1
    assert [line.split("\t")[0] for line in out.splitlines()[1:]] == [str(good)]
    assert "short.wav: cut short" in err
    assert "text.wav: not a sound file" in err
    broken = bytearray(good.read_bytes())
    at = broken.index(b"fmt ")
    broken[at + 12 : at + 16] = struct.pack("<I", 0)
    good.write_bytes(broken)
    code, _, err = call(capsys, "info", good)
    assert code == 1
    assert "0 samples a second" in err
    code, out, _ = call(capsys, "info", run, "--json")
    assert code == 0
    assert json.loads(out)["rate"] == RATE


def test_refusals(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model", run, "--device", "cpu")
    code, _, err = call(capsys, "evaluate", *options, "--samples", tmp_path / "gone")
    assert code == 1
    assert "gone" in err
    code, _, err = call(capsys, "evaluate", *options, "--contexts", "8,x")
    assert code == 2
    assert "8,x" in err
    code, _, err = call(capsys, "evaluate", *options, "--without", "nobody")
    assert code == 2
    assert "nobody" in err
    code, _, err = call(capsys, "report", tmp_path)
    assert code == 1
    assert "nothing to report" in err
    (run / "model").rename(run / "gone")
    try:
        assert call(capsys, "evaluate", *options)[0] == 1
    finally:
        (run / "gone").rename(run / "model")
