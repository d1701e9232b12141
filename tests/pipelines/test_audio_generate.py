"""``mambaaudio generate`` from the command line: files, manifest, pictures, errors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mambaaudio import WaveformConfig, WaveformModel, read
from mambacore.multiscale import MultiScaleConfig
from mambapipelines.cli import audio


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    backbone = MultiScaleConfig(d_model=16, pools=(4,), n_layer=1)
    config = WaveformConfig(
        8000, backbone=backbone, labels=("one", "two"), end_event=True, gain=0.5
    )
    made = WaveformModel(config)
    with torch.no_grad():  # draws about digital zero, and rarely ends
        made.head.weight *= 0.1
        made.head.bias[:256] = -(((torch.arange(256) - 128) / 40) ** 2) / 2
        made.head.bias[256] -= 8
    return made.save_pretrained(tmp_path_factory.mktemp("model") / "m")


def _run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str]:
    capsys.readouterr()
    code = audio.main(["generate", *map(str, argv), "--threads", "1", "--device", "cpu"])
    shown = capsys.readouterr()
    assert shown.out == ""
    return code, shown.err


def _table(path: Path) -> list[dict[str, str]]:
    header, *rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_a_clip_and_its_picture_go_on_from_a_recording(model, tmp_path, capsys) -> None:
    tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    soundfile.write(tmp_path / "p.flac", tone, 16000)
    out = tmp_path / "out.wav"
    code, said = _run(
        capsys, "--model", model, "--seconds", 0.25, "--prompt", tmp_path / "p.flac", "--label",
        "two", "--prompt-start", 0.5, "--prompt-seconds", 0.1, "-o", out, "--plot", "--bits", 24,
    )  # fmt: skip
    assert code == 0
    assert "resampled from 16000 Hz" in said
    assert "samples/s" in said
    assert "x real time" in said
    assert " 0 samples/s" not in said
    info = soundfile.info(out)
    assert (info.samplerate, info.frames, info.subtype) == (8000, 2800, "PCM_24")
    assert np.abs(read(out)[:800]).max() == pytest.approx(0.4, abs=0.03)  # the gain was undone
    assert (tmp_path / "out.png").stat().st_size > 10_000
    code, _ = _run(
        capsys, "--model", model, "--seconds", 0.25, "--prompt", tmp_path / "p.flac", "--label",
        "two", "--prompt-start", 0.5, "--prompt-seconds", 0.1, "-o", tmp_path / "n.flac",
        "--no-prompt", "--rate", 16000,
    )  # fmt: skip
    assert code == 0
    assert soundfile.info(tmp_path / "n.flac").frames == 4000


def test_many_clips_have_a_manifest_and_each_can_be_made_again(model, tmp_path, capsys) -> None:
    (tmp_path / "many").mkdir()
    common = ("--model", model, "--seconds", 0.1, "--temperature", 0.9, "--label", "one,two")
    code, _ = _run(
        capsys, *common, "-n", 5, "-o", tmp_path / "many" / "{label}_{index}.wav", "--seed", 7,
        "--batch-size", 2,
    )  # fmt: skip
    assert code == 0
    rows = _table(tmp_path / "many" / "manifest.tsv")
    names = [f"{'two' if i % 2 else 'one'}_{i}.wav" for i in range(5)]
    assert [row["file"] for row in rows] == names
    assert [row["seed"] for row in rows] == ["7", "8", "9", "10", "11"]
    assert all(row["temperature"] == "0.9" and row["seconds"] == "0.1000" for row in rows)
    order = sorted(rows, key=lambda row: float(row["bits_per_sample"]))
    assert [row["rank"] for row in order] == ["1", "2", "3", "4", "5"]
    bits = -float(rows[0]["log_likelihood"]) / np.log(2) / 800
    assert bits == pytest.approx(float(rows[0]["bits_per_sample"]), abs=1e-3)
    code, _ = _run(capsys, *common[:-1], "two", "-o", tmp_path / "again.wav", "--seed", 10)
    assert code == 0
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "many/two_3.wav").read_bytes()
    code, _ = _run(
        capsys, *common, "-n", 5, "-o", tmp_path / "some_{seed}.wav", "--seed", 7,
        "--reject-unlikeliest", 0.4,
    )  # fmt: skip
    assert code == 0
    table = _table(tmp_path / "manifest.tsv")
    assert {row["guidance"] for row in table} == {"1"}
    left = {row["seed"] for row in table if row["kept"] == "yes"}
    assert left == {row["seed"] for row in order[:3]}
    assert {p.stem for p in tmp_path.glob("some_*.wav")} == {f"some_{seed}" for seed in left}


def test_guidance_is_drawn_and_written_down(model, tmp_path, capsys) -> None:
    for guidance in (1, 4):
        folder = tmp_path / str(guidance)
        folder.mkdir()
        common = ("--model", model, "--seconds", 0.1, "--label", "one", "-n", 2)
        code, _ = _run(capsys, *common, "-o", folder / "{index}.wav", "--guidance", guidance)
        assert code == 0
        assert {row["guidance"] for row in _table(folder / "manifest.tsv")} == {str(guidance)}
    assert (tmp_path / "1/0.wav").read_bytes() != (tmp_path / "4/0.wav").read_bytes()


def test_the_manifest_names_drawn_speakers(tmp_path, capsys) -> None:
    backbone = MultiScaleConfig(d_model=8, pools=(4,), n_layer=1)
    config = WaveformConfig(8000, backbone=backbone, speakers=("x", "y", "z"))
    model = WaveformModel(config).save_pretrained(tmp_path / "m")
    common = ("--model", model, "--seconds", 0.05, "-n", 12, "-o")

    def made(name: str, *options: object) -> list[dict[str, str]]:
        (tmp_path / name).mkdir()
        code, _ = _run(capsys, *common, tmp_path / name / "{index}_{speaker}.wav", *options)
        assert code == 0
        return _table(tmp_path / name / "manifest.tsv")

    drawn = [row["speaker"] for row in made("drawn")]
    assert set(drawn) == {"x", "y", "z"}
    assert [row["speaker"] for row in made("again", "--seed", 2)][:10] == drawn[2:]
    assert (tmp_path / "drawn" / f"02_{drawn[2]}.wav").is_file()
    assert {row["speaker"] for row in made("told", "--speaker", "y")} == {"y"}
    assert {row["speaker"] for row in made("untold", "--speaker", "none")} == {""}
    soundfile.write(tmp_path / "p.wav", np.full(80, 0.1), 8000)
    assert {row["speaker"] for row in made("prompt", "--prompt", tmp_path / "p.wav")} == {""}


def test_steadier_sound(model, tmp_path, capsys) -> None:
    sizes = []
    for index, given in enumerate(((), ("--core-temperature", 0.1))):
        path = tmp_path / f"{index}.wav"
        assert _run(capsys, "--model", model, "--seconds", 0.1, "-o", path, *given)[0] == 0
        sizes.append(np.abs(soundfile.read(path)[0]).mean())
    assert sizes[1] < sizes[0]


def test_candidates_stay_nearer_to_the_prompts_level(model, tmp_path, capsys) -> None:
    tone = 0.9 * np.sin(2 * np.pi * 440 * np.arange(800) / 8000)
    soundfile.write(tmp_path / "p.wav", tone, 8000)
    common = ("--model", model, "--seconds", 2, "--prompt", tmp_path / "p.wav", "--no-prompt")
    levels = []
    for candidates in (1, 8):
        drawn = ("-n", 2, "--candidates", candidates, "--top-p", 0.99, "--core-temperature", 0.9)
        path = tmp_path / f"{candidates}_{{index}}.wav"
        assert _run(capsys, *common, *drawn, "-o", path)[0] == 0
        levels.append(soundfile.read(tmp_path / f"{candidates}_0.wav")[0].std())
        for row in _table(tmp_path / "manifest.tsv"):
            assert (row["candidates"], row["top_p"], row["top_k"]) == (str(candidates), "0.99", "")
            assert row["core_temperature"] == "0.9"
    assert levels[0] < levels[1] < tone.std()


def test_standard_output_is_a_wav(model, tmp_path, monkeypatch, capsys) -> None:
    class Pipe:
        buffer = io.BytesIO()

        def write(self, text: str) -> int:
            raise AssertionError(text)

        def flush(self) -> None:
            pass

    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout", Pipe())
        assert audio.main(["generate", "--model", str(model), "--seconds", "0.1", "-o", "-",
                           "--device", "cpu"]) == 0  # fmt: skip
    assert Pipe.buffer.getvalue()[:4] == b"RIFF"
    assert len(Pipe.buffer.getvalue()) == 44 + 1600
    capsys.readouterr()


def test_what_is_wrong_is_said_and_leaves_no_file(model, tmp_path, capsys) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "silent.wav", np.zeros(100), 8000)
    before = set(tmp_path.iterdir())
    silent = ("--prompt", tmp_path / "silent.wav")
    out = ("-o", tmp_path / "o.wav")
    for code, text, argv in (
        (2, "knows one, two", ("--label", "three", *out)),
        (2, "without speakers", ("--speaker", "x", *out)),
        (2, "{index}", ("-n", 2, *out)),
        (2, "above 0", ("--seconds", 0, *out)),
        (2, "top_p", ("--top-p", 2, *out)),
        (2, "--label or --speaker", ("--guidance", 2, *out)),
        (2, "core_temperature", ("--core-temperature", 2, *out)),
        (2, "candidates 2 needs --prompt", ("--candidates", 2, *out)),
        (2, "digital silence", ("--candidates", 2, *silent, *out)),
        (2, "choose mix, left, right", ("--channel", "each", "--prompt", "x.wav", *out)),
        (2, "needs --prompt", ("--no-prompt", *out)),
        (2, "suffix", ("-o", tmp_path / "o.mp4")),
        (1, "no such folder", ("-o", tmp_path / "gone" / "o.wav")),
        (1, "text.wav", ("--prompt", tmp_path / "text.wav", *out)),
        (1, "empty", ("--prompt", tmp_path / "empty.wav", *out)),
        (1, "sample 0", ("--prompt", tmp_path / "nan.wav", *out)),
        (2, "streams one clip", ("-n", 2, "-o", "-")),
    ):
        got, said = _run(capsys, "--model", model, *argv)
        assert (got, text.lower() in said.lower()) == (code, True), said
    got, said = _run(capsys, "--model", tmp_path / "nowhere", *out)
    assert (got, "nowhere" in said) == (2, True)
    assert set(tmp_path.iterdir()) == before


def test_a_guard_tells_of_silence(tmp_path, capsys) -> None:
    made = WaveformModel(
        WaveformConfig(8000, backbone=MultiScaleConfig(d_model=8, pools=(4,), n_layer=1))
    )
    with torch.no_grad():
        made.head.bias[128] += 100
    made.save_pretrained(tmp_path / "m")
    code, said = _run(capsys, "--model", tmp_path / "m", "--seconds", 3, "-o", tmp_path / "o.wav")
    assert code == 0
    assert "o.wav: from 0 s: silence" in said
