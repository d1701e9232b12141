"""Interrupted in the middle of a stage of the length curriculum, a training goes on exactly."""

from __future__ import annotations

import dataclasses
import signal
import sys
from pathlib import Path

import pytest

from mambapipelines import checkpoints
from mambapipelines.interrupt import Interrupted
from mambapipelines.metrics_file import read_rows
from mambapipelines.options import TrainerOptions

sys.path.insert(0, str(Path(__file__).parent))
from test_resume import FakeClock, assert_same, outcome
from toy import STEPS, TRAINER, ToyData, run_toy

EVERY = dataclasses.replace(TRAINER, log_every_n_steps=1)


def windows(folder: Path) -> dict[int, int]:
    """Step to the window's length."""
    rows = read_rows(folder / "metrics.csv")
    return {int(r["step"]): int(r["train/window"]) for r in rows if "train/window" in r}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run_toy(folder, trainer=EVERY).step == STEPS
    return folder


def test_each_stage_doubles_the_length_and_halves_the_batch(whole: Path) -> None:
    rows = [row for row in read_rows(whole / "metrics.csv") if "train/window" in row]
    stages = list(dict.fromkeys((row["train/window"], row["train/batch"]) for row in rows))
    assert stages == [(16, 64), (32, 32), (64, 16)]
    # The learning rate's schedule spans them: it rises once, and falls from then on.
    rates = [row["lr"] for row in rows]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize(
    ("stage", "batch", "workers"),
    # Accumulating two batches a step: in the first stage, within the second (in the middle of a
    # step), and in the first step of the third.
    [(16, 9, 0), (32, 23, 0), (64, 30, 0), (32, 23, 2)],
)
def test_stopped_within_a_stage(
    tmp_path: Path, whole: Path, stage: int, batch: int, workers: int
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted) as stop:
        run_toy(folder, data=ToyData(workers, signal.SIGTERM, batch), trainer=EVERY)
    assert stop.value.code == 143
    step = checkpoints.read(folder / "checkpoints/last.ckpt")["global_step"]
    if not workers:  # workers are ahead of the training
        assert windows(whole)[step + 1] == stage
    assert run_toy(folder, data=ToyData(workers), trainer=EVERY).step == STEPS
    assert_same(outcome(folder), outcome(whole))


def test_stopped_again_and_again(tmp_path: Path, whole: Path) -> None:
    """Three resumes, each in another stage, with another number of workers."""
    folder = tmp_path / "run"
    for batch, workers in ((9, 0), (27, 1), (44, 0)):
        with pytest.raises(Interrupted):
            run_toy(folder, data=ToyData(workers, signal.SIGTERM, batch), trainer=EVERY)
    assert run_toy(folder, trainer=EVERY).step == STEPS
    assert_same(outcome(folder), outcome(whole))


def test_with_a_time_budget_a_resumed_stage_never_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock moves the stages: time spent before the interruption counts."""
    budget: TrainerOptions = dataclasses.replace(EVERY, max_steps=100_000, max_time="30s")
    folder = tmp_path / "run"
    monkeypatch.setattr("mambapipelines.clock.time", FakeClock())
    with pytest.raises(Interrupted):
        run_toy(folder, trainer=budget, data=ToyData(0, signal.SIGTERM, 40))
    before = windows(folder)
    monkeypatch.setattr("mambapipelines.clock.time", FakeClock())
    run_toy(folder, trainer=budget)
    after = windows(folder)
    assert {step: after[step] for step in before} == before
    lengths = [after[step] for step in sorted(after)]
    assert lengths == sorted(lengths)
    assert lengths[-1] == 64
    assert 0 < max(before) < max(after)
