"""Interrupted anywhere and resumed, a training equals an uninterrupted one bit for bit."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mambacore.errors import DataError
from mambapipelines import checkpoints
from mambapipelines.interrupt import Interrupted
from mambapipelines.metrics_file import read_rows
from mambapipelines.runs import Run

sys.path.insert(0, str(Path(__file__).parent))
from toy import STEPS, TRAINER, ToyData, ToyModule, run_toy

TIMED = {"seconds", "train/tokens_per_second"}


def outcome(folder: Path) -> tuple[dict, list, dict]:
    """All that must be equal: the last checkpoint, the metrics but for times, the best."""
    last = checkpoints.read(folder / "checkpoints" / "last.ckpt")
    rows = read_rows(folder / "metrics.csv")
    figures = [{k: v for k, v in row.items() if k not in TIMED} for row in rows]
    return last, figures, checkpoints.read(folder / "checkpoints" / "best.ckpt")


def assert_same(got, expected, where: str = "") -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected), where
    elif isinstance(expected, dict):
        assert got.keys() == expected.keys(), where
        for key in expected:
            if key not in ("elapsed",):
                assert_same(got[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(got) == len(expected), where
        for i, (a, b) in enumerate(zip(got, expected, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert got == expected, where


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple:
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = run_toy(folder)
    assert result.step == STEPS
    return outcome(folder)


def test_an_uninterrupted_training_measures_and_keeps_the_best(whole):
    last, rows, best = whole
    assert last[checkpoints.POSITION]["step"] == STEPS
    validated = [row["step"] for row in rows if "val/loss" in row]
    assert validated == [7, 14, 21, 28, 30]
    assert [row["step"] for row in rows if "train/loss" in row] == [4, 8, 12, 16, 20, 24, 28]
    assert {row["train/window"] for row in rows if "train/window" in row} == {16, 32, 64}
    scores = {row["step"]: row["val/loss"] for row in rows if "val/loss" in row}
    assert best[checkpoints.POSITION]["step"] == min(scores, key=scores.__getitem__)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [1, 26, 41])
def test_signal_between_steps(tmp_path, whole, signum, at):
    with pytest.raises(Interrupted) as stop:
        run_toy(tmp_path / "run", data=ToyData(0, signum, at))
    assert stop.value.code == 128 + signum
    assert run_toy(tmp_path / "run").step == STEPS
    assert_same(outcome(tmp_path / "run"), whole)


def test_signal_during_validation(tmp_path, whole):
    module = ToyModule()
    module.stop_in_validation = True
    with pytest.raises(Interrupted):
        run_toy(tmp_path / "run", module=module)
    assert checkpoints.read(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 20
    run_toy(tmp_path / "run")
    assert_same(outcome(tmp_path / "run"), whole)


@pytest.mark.parametrize(
    ("signum", "workers"),
    [(signal.SIGKILL, 2), (signal.SIGTERM, 2)],
)
def test_signal_to_a_process(tmp_path, whole, signum, workers):
    script = Path(__file__).with_name("toy.py")
    command = [sys.executable, str(script), str(tmp_path / "run"), str(workers)]
    killed = subprocess.run(
        [*command, str(int(signum)), "35"], capture_output=True, text=True, timeout=120
    )
    expected = -signum if signum == signal.SIGKILL else 128 + signum
    assert killed.returncode == expected, killed.stderr
    assert 0 < checkpoints.read(tmp_path / "run/checkpoints/last.ckpt")["global_step"] < STEPS
    run_toy(tmp_path / "run", data=ToyData(workers))
    assert_same(outcome(tmp_path / "run"), whole)


def test_killed_while_a_checkpoint_is_written(tmp_path, whole, monkeypatch):
    """The new file is beside the old one until it is complete."""
    calls = []
    real = os.replace

    def replace(source, target):
        if str(target).endswith("last.ckpt"):
            calls.append(target)
            if len(calls) == 3:
                raise Interrupted(signal.SIGKILL)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Interrupted):
        run_toy(tmp_path / "run")
    monkeypatch.undo()
    run_toy(tmp_path / "run")
    assert_same(outcome(tmp_path / "run"), whole)


def test_full_disk_keeps_the_previous_checkpoint(tmp_path, whole, monkeypatch):
    real = os.fsync
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) > 14:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DataError, match="last.ckpt: cannot be written .*No space left"):
        run_toy(tmp_path / "run")
    monkeypatch.undo()
    assert not list((tmp_path / "run").rglob("*.tmp"))
    run_toy(tmp_path / "run")
    assert_same(outcome(tmp_path / "run"), whole)


def test_a_damaged_checkpoint_is_named(tmp_path):
    with pytest.raises(Interrupted):
        run_toy(tmp_path / "run", data=ToyData(0, signal.SIGINT, 10))
    last = Run(tmp_path / "run").last
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"last\.ckpt is not a readable checkpoint"):
        run_toy(tmp_path / "run")


def test_resuming_an_ended_training_trains_no_further(tmp_path, whole):
    run_toy(tmp_path / "run")
    result = run_toy(tmp_path / "run")
    assert (result.step, result.ended) == (STEPS, f"all {STEPS} steps are done")
    assert_same(outcome(tmp_path / "run"), whole)


class FakeClock:
    """Half a second a step, 0.1 s a look at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.1
        return self.now


def test_a_time_budget_ends_the_training_and_bends_the_schedules(tmp_path, monkeypatch):
    """With steps to spare, learning rate and length follow the clock, over a resume too."""
    budget = dataclasses.replace(TRAINER, max_steps=100_000, max_time="60s", log_every_n_steps=1)
    monkeypatch.setattr("mambapipelines.clock.time", FakeClock())
    with pytest.raises(Interrupted):
        run_toy(tmp_path / "run", trainer=budget, data=ToyData(0, signal.SIGTERM, 100))
    before = checkpoints.read(tmp_path / "run/checkpoints/last.ckpt")[checkpoints.POSITION]
    assert 5 < before["elapsed"] < 55
    monkeypatch.setattr("mambapipelines.clock.time", FakeClock())
    result = run_toy(tmp_path / "run", trainer=budget)
    assert "the time of 60s is used up" in result.ended
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.csv") if "lr" in row]
    assert [row["step"] for row in rows] == list(range(1, result.step + 1))
    windows = [row["train/window"] for row in rows]
    assert windows == sorted(windows)
    assert set(windows) == {16, 32, 64}
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert 60 <= seconds[-1] < 65
    assert rows[-1]["lr"] < 0.05 * max(row["lr"] for row in rows)


def test_early_stopping_waits_for_full_length(tmp_path, monkeypatch):
    """Worse validations count only from full-length windows on."""
    monkeypatch.setattr(ToyModule, "validation_score", lambda self: float(self.trainer.global_step))
    eager = dataclasses.replace(TRAINER, patience=2, max_steps=60)
    result = run_toy(tmp_path / "run", trainer=eager)
    # Full length from step 30 on; validations at 35 and 42 are the first two worse ones.
    assert result.step == 42
    assert result.best_step == 7
    assert "no better val/loss in 2 validations" in result.ended
