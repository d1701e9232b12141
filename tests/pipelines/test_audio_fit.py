"""mambaaudio fit: clips and long recordings, resuming, fine-tuning, what is refused."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from test_resume import assert_same, outcome

from mambaaudio.corpus import build_corpus
from mambaaudio.model import WaveformModel
from mambaaudio.rows import Layout
from mambaaudio.sheet import load_samples
from mambaaudio.synth import melody, write_notes
from mambaaudio.waveform import read
from mambaaudio.windows import TrainingWindows, tile_windows
from mambapipelines.cli import audio
from mambapipelines.metrics_file import read_rows

RATE = 4000
SMALL = (
    "--data.window", "2048", "--data.tokens", "4096", "--model.d_model", "8",
    "--model.n_layer", "1", "--trainer.max_steps", "9", "--trainer.val_check_interval", "3",
    "--trainer.log_every_n_steps", "3", "--trainer.threads", "1", "--trainer.accelerator", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_notes(tmp_path_factory.mktemp("notes"), rate=RATE, seconds=0.2, takes=4)


@pytest.fixture(scope="module")
def trained(notes: Path) -> Path:
    """A finished run on labelled notes."""
    run = notes.parent / "run"
    assert audio.main(["fit", "--data.samples", str(notes), "--run", str(run), *SMALL]) == 0
    return run


def fit(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str]:
    """Exit code and standard error; standard output stays empty."""
    capsys.readouterr()
    code = audio.main(["fit", *map(str, argv)])
    shown = capsys.readouterr()
    assert shown.out == ""
    return code, shown.err


def test_a_run_on_labelled_clips(trained: Path, notes: Path) -> None:
    model = WaveformModel.from_pretrained(trained)
    config = model.config
    assert (config.rate, config.code, config.end_event, config.gain) == (RATE, "mulaw8", True, 1.0)
    assert config.labels == ("A3", "C4", "D4", "E4", "G4")
    assert config.speakers == ("string", "tone")
    assert config.trained_on["recordings"] == 20
    assert yaml.safe_load((trained / "config.yaml").read_text())["data"]["samples"] == str(notes)
    environment = json.loads((trained / "environment.json").read_text())
    assert len(environment["inputs"]) == 1 + 40
    assert environment["finished"]
    assert {p.suffix for p in (trained / "cache").iterdir()} == {".pcm", ".json", ".lock"}


def test_validation_bits_are_those_of_real_samples(trained: Path, notes: Path) -> None:
    """The best val/bits is the model's cross entropy on the validation clips, tail aside."""
    corpus = build_corpus(load_samples(notes), trained / "cache", log=lambda line: None)
    tiles = tile_windows(corpus, "val", 2048, Layout.choose(corpus, 2048))
    model = WaveformModel.from_pretrained(trained)
    nats = samples = 0.0
    for row in range(len(tiles)):
        batch = [torch.from_numpy(part) for part in tiles.batch([row])]
        codes, _, counted, label, speaker = batch
        with torch.no_grad():
            logits, _ = model(model.shift(codes), label=label, speaker=speaker)
        scores = logits.log_softmax(-1).gather(-1, codes.long()[..., None])[..., 0]
        nats -= float(scores[counted].double().sum())
        samples += int(counted.sum())
    rows = [r for r in read_rows(trained / "metrics.csv") if "val/bits" in r]
    assert min(r["val/bits"] for r in rows) == pytest.approx(nats / samples / math.log(2), abs=1e-4)
    # Silence and end event are in the loss, so the two figures differ.
    assert all(abs(r["val/loss"] / math.log(2) - r["val/bits"]) > 1e-3 for r in rows)
    assert rows[-1]["val/bits"] < rows[0]["val/bits"]


def test_interrupted_and_resumed_is_the_same(
    tmp_path: Path, trained: Path, notes: Path, capsys, monkeypatch
) -> None:
    real = TrainingWindows.batch

    def interrupting(self, step, *rest):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, step, *rest)

    run = tmp_path / "run"
    monkeypatch.setattr(TrainingWindows, "batch", interrupting)
    code, err = fit(capsys, "--data.samples", notes, "--run", run, *SMALL)
    assert code == 143
    assert f"Continue with: --resume {run}" in err
    monkeypatch.undo()
    code, err = fit(capsys, "--resume", run, "--data.num_workers", "1")
    assert code == 0, err
    assert_same(outcome(run), outcome(trained))
    weights = "model/model.safetensors"
    assert (run / weights).read_bytes() == (trained / weights).read_bytes()


def test_long_recordings_at_one_gain(tmp_path: Path, capsys) -> None:
    """One file: its end validates; no end event; the gain is kept with the model."""
    (tmp_path / "in").mkdir()
    wave = 0.25 * melody(4, 8000, np.random.default_rng(0))
    soundfile.write(tmp_path / "in" / "a.flac", wave, 8000)
    code, err = fit(
        capsys, "--data.samples", tmp_path / "in", "--run", tmp_path / "run", *SMALL,
        "--data.gain", "corpus", "--data.code", "pcm16", "--data.rate", "4000",
        "--data.length_warmup", "0.5", "--data.first_window", "512",
    )  # fmt: skip
    assert code == 0, err
    model = WaveformModel.from_pretrained(tmp_path / "run")
    assert (model.config.end_event, model.config.labels, model.config.rate) == (False, (), 4000)
    heard = read(tmp_path / "in" / "a.flac", rate=4000)[:14400]
    assert model.config.gain == pytest.approx(0.98 / np.abs(heard).max(), rel=1e-3)
    assert model.config.trained_on["seconds"] == pytest.approx(3.6, abs=0.01)
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    widths = [row["train/window"] for row in rows if "train/window" in row]
    assert widths == [1024, 4096, 4096]  # two symbols a sample
    assert [r["val/bits"] for r in rows if "val/bits" in r][-1] < 17


def test_fine_tuning_takes_the_model_over(tmp_path: Path, trained: Path, notes: Path, capsys):
    before = WaveformModel.from_pretrained(trained)
    init = ("--model.init", trained, "--run", tmp_path / "run")
    own = tmp_path / "own"
    own.mkdir()
    for i in range(3):
        wave = melody(1, 8000, np.random.default_rng(i), instrument="tone")
        soundfile.write(own / f"{i}.wav", wave, 8000)
    code, err = fit(capsys, "--data.samples", own, *init, *SMALL, "--optimizer.lr", "1e-9")
    assert code == 0, err
    after = WaveformModel.from_pretrained(tmp_path / "run")
    assert after.config.backbone == before.config.backbone
    assert (after.config.rate, after.config.labels) == (RATE, before.config.labels)
    for name, value in before.state_dict().items():
        assert torch.allclose(after.state_dict()[name], value, atol=1e-6), name


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--model.n_layer", "2"), "--model.n_layer is 2, but the model to fine-tune"),
        (("--data.rate", "8000"), "works at 4000 Hz"),
        (("--data.code", "linear8"), "has mulaw8"),
    ],
)
def test_what_a_model_to_fine_tune_fixes(tmp_path, trained, notes, capsys, options, text) -> None:
    init = ("--model.init", trained, "--run", tmp_path / "run")
    # Without SMALL's own sizes, of which 8 and 1 would agree.
    code, err = fit(capsys, "--data.samples", notes, *init, *options)
    assert code == 2
    assert text in err


def test_unknown_labels_are_refused(tmp_path, trained, notes, capsys) -> None:
    (tmp_path / "s.tsv").write_text(f"path\tlabel\n{notes.parent / 'A3_tone_0.wav'}\tB9\n")
    init = ("--model.init", trained, "--run", tmp_path / "run")
    code, err = fit(capsys, "--data.samples", tmp_path / "s.tsv", *init)
    assert code == 1
    assert "unknown label 'B9'. The model knows A3" in err


def test_a_bad_file_stops_before_training_or_is_left_out(tmp_path: Path, notes: Path, capsys):
    lines = [f"{notes.parent / name}" for name in ("A3_tone_0.wav", "C4_tone_0.wav")]
    (tmp_path / "bad.wav").write_text("no sound")
    (tmp_path / "s.tsv").write_text("\n".join(["path", *lines, "bad.wav"]) + "\n")
    arguments = ("--data.samples", tmp_path / "s.tsv", "--run", tmp_path / "run", *SMALL)
    code, err = fit(capsys, *arguments)
    assert code == 1
    assert "bad.wav" in err
    assert "--data.skip_bad" in err
    assert not (tmp_path / "run").exists()
    code, err = fit(capsys, *arguments, "--data.skip_bad", "true")
    assert code == 0, err
    assert "left out" in err
    notes_of = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert [Path(name).name for name, _ in notes_of["skipped"]] == ["bad.wav"]


def test_padding_trains_nothing(trained: Path) -> None:
    from mambapipelines.audio.data import Batch
    from mambapipelines.audio.module import WaveformModule
    from mambapipelines.options import OptimizerOptions

    model = WaveformModel.from_pretrained(trained).train()
    module = WaveformModule(model, OptimizerOptions(), label_dropout=0, speaker_dropout=1)
    mask = torch.tensor([[True] * 40, [True] * 25 + [False] * 15])
    counted = mask & (torch.arange(40) < 20)
    losses = []
    for seed in (0, 1):
        codes = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(2))
        noise = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(seed))
        codes = torch.where(mask, codes, noise)
        batch = Batch(codes, mask, counted, torch.tensor([1, 2]), torch.tensor([seed, 2]))
        losses.append(module.training_step(batch, 0))
    # Neither what stands in the padding nor a speaker that is always hidden changes anything.
    for name, value in losses[0].items():
        assert torch.equal(value, losses[1][name]), name


def test_noise_reaches_the_inputs_of_real_samples_alone(trained: Path) -> None:
    """Not the targets, not the tail, and at most as much as was said."""
    from mambapipelines.audio.module import WaveformLoss

    class Listener(torch.nn.Module):
        """A model that remembers what it heard and expects its targets' neighbours alike."""

        config = WaveformModel.from_pretrained(trained).config

        def shift(self, codes: torch.Tensor) -> torch.Tensor:
            self.heard = codes
            return codes

        def forward(self, codes, **conditions):
            return torch.zeros(*codes.shape, self.config.vocabulary), None

    torch.manual_seed(0)
    model = Listener()
    codes = torch.randint(256, (400, 50))
    codes[:, 0], codes[:, 1] = 0, 255
    codes[:, -1] = model.config.end
    counted = torch.arange(50).expand(400, 50) < 40
    zeros = torch.zeros(400, dtype=torch.int64)
    WaveformLoss(model, input_noise=3.0)(codes, counted, counted, zeros, zeros)
    heard, real = model.heard, counted & (codes > 20) & (codes < 235)
    assert torch.equal(heard[~counted], codes[~counted])
    assert 0 <= heard.min()
    assert heard[counted].max() == 255
    moved = torch.where(real, heard - codes, 0).float()
    sizes = moved.square().sum(1).div(real.sum(1)).sqrt()
    assert 2.5 < sizes.max() < 4
    assert abs(moved.sum() / real.sum()) < 0.1
    # A third of the rows have less than a ninth of it: sqrt of that is drawn uniformly.
    assert 0.25 < (sizes < 3 / 9).float().mean() < 0.45
    WaveformLoss(model)(codes, counted, counted, zeros, zeros)
    assert torch.equal(model.heard, codes)


@pytest.mark.parametrize(
    ("settings", "power", "far"),
    [({"spread_penalty": 0.02}, 2, 20), ({"jump_limit": 20.0}, 4, 300)],
)
def test_a_cost_of_distance_takes_from_far_symbols(
    trained: Path, settings: dict[str, float], power: int, far: float
) -> None:
    """At its minimum p_k / q_k grows with the mean cost of the distance of k."""
    from mambapipelines.audio.module import WaveformLoss

    class Guess(torch.nn.Module):
        """Expects the same of every symbol."""

        config = WaveformModel.from_pretrained(trained).config

        def __init__(self) -> None:
            super().__init__()
            self.scores = torch.nn.Parameter(torch.zeros(self.config.vocabulary))

        def shift(self, codes: torch.Tensor) -> torch.Tensor:
            return codes

        def forward(self, codes, **conditions):
            return self.scores.expand(*codes.shape, -1), None

    model = Guess()
    end = model.config.end
    kinds, counts = torch.tensor([100, 101, 104, 200]), torch.tensor([60, 30, 9, 1])
    codes = torch.cat([kinds.repeat_interleave(counts), torch.tensor([end] * 25)])[None]
    counted = codes < end
    zeros = torch.zeros(1, dtype=torch.int64)
    loss = WaveformLoss(model, **settings)
    weight = settings.get("spread_penalty", 20.0**-4)
    optimizer = torch.optim.LBFGS([model.scores], max_iter=500, line_search_fn="strong_wolfe")

    def close() -> torch.Tensor:
        optimizer.zero_grad()
        value, _ = loss(codes, torch.ones_like(counted), counted, zeros, zeros)
        value.backward()
        return value

    for _ in range(5):
        optimizer.step(close)
    q = model.scores.detach().softmax(0)
    real = codes[counted].float()
    away = torch.stack([weight * (k - real).pow(power).mean() for k in kinds])
    assert torch.allclose(q[end], torch.tensor(25 / 125), rtol=1e-3)  # nothing to do with it
    q = q[kinds] / (1 - q[end])
    # The mean of the likelihood runs over 125 symbols, 100 of them real.
    ratio = counts / 125 / q
    slope = (ratio - ratio[0]) / (away - away[0]).where(away != away[0], torch.ones(()))
    assert torch.allclose(slope[1:], torch.tensor(1.0), rtol=0.05)
    assert q[3] < 0.01 / far


@pytest.mark.parametrize(
    "option", ["--model.input_noise", "--model.spread_penalty", "--model.jump_limit"]
)
def test_noise_and_limit_need_one_symbol_a_sample(
    tmp_path: Path, notes: Path, capsys, option: str
) -> None:
    options = ["--data.samples", notes, "--run", tmp_path / "run", "--data.code", "pcm16"]
    status, err = fit(capsys, *options, option, "1")
    assert status == 2
    assert option in err
    assert "pcm16" in err
    assert not (tmp_path / "run").exists()


def test_a_run_with_noise_and_other_speeds(tmp_path: Path, notes: Path, capsys) -> None:
    options = ["--data.samples", notes, "--run", tmp_path / "run", "--model.preset", "tiny"]
    options += ["--trainer.max_steps", "3", "--model.input_noise", "2", "--data.speed", "0.1"]
    options += ["--model.spread_penalty", "0.01", "--model.jump_limit", "20"]
    status, err = fit(capsys, *options)
    assert status == 0, err
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (kept["model"]["input_noise"], kept["data"]["speed"]) == (2, 0.1)


def test_the_demo_asks_for_what_there_is(tmp_path: Path) -> None:
    """Its training parses, and its notes are clips of its window."""
    from mambapipelines import demo_audio
    from mambapipelines.cli.audio_verbs.fit import SECTIONS
    from mambapipelines.cli.fit_parser import parse_fit

    train, generate = demo_audio._commands(tmp_path)
    options = parse_fit(train[1:], "mambaaudio fit", SECTIONS).sections["data"]
    sheet = load_samples(write_notes(tmp_path / "notes", rate=4000, seconds=0.4, takes=3))
    corpus = build_corpus(sheet, tmp_path / "cache", log=lambda line: None)
    assert Layout.choose(corpus, options.window).clips
    assert generate[generate.index("--label") + 1].split(",") == list(sheet.labels)


def test_spoken_digits_train(tmp_path: Path, shared_data: Path, capsys) -> None:
    """Real clips, from the archive to a model with their labels and speakers."""
    import tarfile

    rows = ["path\tlabel\tspeaker\tsplit"]
    with tarfile.open(shared_data / "audio" / "fsdd_wav.tar.gz") as archive:
        for member in archive:
            name = Path(member.name).name
            if name.endswith(("_0.wav", "_7.wav", "_30.wav")) and name[0] in "012":
                member.name = name
                archive.extract(member, tmp_path, filter="data")
                digit, speaker, take = name.removesuffix(".wav").split("_")
                split = {"0": "test", "7": "val"}.get(take, "train")
                rows.append(f"{name}\t{digit}\t{speaker}\t{split}")
    (tmp_path / "digits.tsv").write_text("\n".join(rows) + "\n")
    options = (*SMALL, "--data.window", "8192", "--trainer.max_steps", "3")
    code, err = fit(
        capsys, "--data.samples", tmp_path / "digits.tsv", "--run", tmp_path / "run", *options
    )
    assert code == 0, err
    config = WaveformModel.from_pretrained(tmp_path / "run").config
    assert config.labels == ("0", "1", "2")
    assert len(config.speakers) == 6
    assert config.end_event
