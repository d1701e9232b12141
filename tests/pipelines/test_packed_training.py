"""Training on packed rows of short records: it learns, reports its padding, and resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bio_cli import SMALL, random_fasta, run_cli
from test_resume import assert_same, outcome

from helpers import assert_close
from mambabio.packing import PackedWindows
from mambapipelines.checkpoints import read
from mambapipelines.metrics_file import read_rows

PACKED = (*SMALL, "--data.window", "512", "--data.packing", "true", "--data.baselines", "false",
          "--trainer.max_steps", "40", "--trainer.val_check_interval", "20")  # fmt: skip


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """Two labels of 100-base records that differ in composition."""
    folder = tmp_path_factory.mktemp("short")
    for seed, (label, gc) in enumerate((("rich", 0.8), ("poor", 0.2))):
        random_fasta(folder / f"{label}.fa", seed, records=60, length=100, gc=gc)
    return folder


def test_a_classifier_learns_from_records_shorter_than_the_window(
    tmp_path, short, capsys, monkeypatch
):
    base = ["fit", "--data.samples", short, "--run"]
    code, _, err = run_cli(capsys, *base, tmp_path / "no", *PACKED, "--data.packing", "false")
    assert code == 1
    assert "longer than every training record" in err
    code, _, err = run_cli(capsys, *base, tmp_path / "run", *PACKED)
    assert code == 0, err
    assert "with a row a record, 80.5% would be" in err
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    padding = [row["train/padding"] for row in rows if "train/padding" in row]
    assert max(padding) < 64 / 128
    assert padding[-1] < 64 / 512
    assert rows[-1]["val/accuracy"] > 0.9

    real = PackedWindows.batch

    def interrupting(self, step, *rest):
        if step == 17:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, step, *rest)

    monkeypatch.setattr(PackedWindows, "batch", interrupting)
    assert run_cli(capsys, *base, tmp_path / "cut", *PACKED)[0] == 143
    monkeypatch.undo()
    code, _, err = run_cli(capsys, "fit", "--resume", tmp_path / "cut", "--data.num_workers", "2")
    assert code == 0, err
    assert_same(outcome(tmp_path / "cut"), outcome(tmp_path / "run"))


def test_a_language_model_learns_from_them(tmp_path, short, capsys):
    code, _, err = run_cli(
        capsys, "pretrain", "--data.samples", short, "--run", tmp_path / "run",
        *(a for a in PACKED if a not in ("--data.baselines", "false")),
        "--optimizer.lr", "0.02", "--trainer.segments", "2",
    )  # fmt: skip
    assert code == 0, err
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    assert rows[-1]["val/bits"] < 2.1
    assert "train/padding" in next(row for row in rows if "train/bits" in row)


@pytest.mark.slow
def test_two_ranks_weigh_every_base_alike(tmp_path, short, capsys):
    """Rows hold unequal numbers of scored bases; two ranks train as one does on all rows."""
    options = [*(a for a in PACKED if a not in ("--data.baselines", "false"))]
    # Exact: what differs between the two is then a wrong weight, not rounding.
    options += ["--trainer.max_steps", "12", "--trainer.precision", "64-true", "--seed", "4"]
    base = ["pretrain", "--data.samples", str(short), *options, "--run"]
    assert run_cli(capsys, *base, tmp_path / "one")[0] == 0
    two = ["--data.tokens", "512", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = [sys.executable, "-m", "mambapipelines", "bio", *base, str(tmp_path / "two"), *two]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    weights = [read(tmp_path / run / "checkpoints/last.ckpt") for run in ("one", "two")]
    for name, value in weights[0]["state_dict"].items():
        assert_close(weights[1]["state_dict"][name], value, 1e-9, name)
