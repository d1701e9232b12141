"""Two processes train as one: windows split over them, or batches; resumed; killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from helpers import assert_close
from mambacore import UsageError
from mambapipelines import checkpoints
from mambapipelines.metrics_file import read_rows
from mambapipelines.options import TrainerOptions
from mambapipelines.parallel.strategy import NAME, SequenceParallelStrategy
from mambapipelines.step_keeper import seed_step
from mambapipelines.training import _strategy, build_trainer

sys.path.insert(0, str(Path(__file__).parent))
from toy_ranks import TRAINER, Batch, rows, run_toy

TIMED = {"seconds", "train/tokens_per_second"}
SCRIPT = Path(__file__).with_name("toy_ranks.py")


def start(*arguments: object) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK")}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    done = start(folder)
    assert done.returncode == 0, done.stderr
    run_toy(folder / "one", TRAINER)
    return folder


def figures(folder: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k not in TIMED}
        for row in read_rows(folder / "metrics.csv")
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoints.read(folder / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.mark.parametrize("name", ["split", "data"])
def test_two_processes_train_as_one(trained, name):
    got, expected = weights(trained / name), weights(trained / "one")
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert value.dtype == torch.float64
        assert_close(got[key], value, 1e-7, key)  # after Adam, which divides by small numbers
    ours, theirs = figures(trained / name), figures(trained / "one")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        for key in ("train/loss", "val/loss"):
            if key in other:
                relative = 1e-10 if key == "train/loss" else 1e-6  # Lightning keeps float32
                assert row[key] == pytest.approx(other[key], rel=relative), (row["step"], key)


def test_resumed_on_two_processes_equals_uninterrupted(trained):
    got, expected = weights(trained / "stopped"), weights(trained / "unstopped")
    for key, value in expected.items():
        assert torch.equal(got[key], value), key
    assert figures(trained / "stopped") == figures(trained / "unstopped")


@pytest.mark.slow
def test_a_killed_process_ends_the_training_with_one_message(tmp_path):
    """The second one, and the one that the others met at; both trainings at a time."""

    def run(rank: int) -> subprocess.CompletedProcess:
        return start(tmp_path / str(rank), rank)  # returns when both processes are gone

    began = time.monotonic()
    with ThreadPoolExecutor() as pool:
        ends = list(pool.map(run, (0, 1)))
    assert time.monotonic() - began < 200  # with their start
    for rank, ended in enumerate(ends):
        assert ended.returncode == (1 if rank else -9)
        lines = [line for line in ended.stderr.splitlines() if "of this training" in line]
        assert len(lines) == 1, ended.stderr
        assert f"--resume {tmp_path / str(rank) / 'killed'}" in lines[0]
        assert "Traceback" not in ended.stderr


def test_options_are_checked_before_anything_starts():
    with pytest.raises(UsageError, match="is a strategy of its own"):
        _strategy(TrainerOptions(sequence_parallel=2, strategy="fsdp"))
    assert isinstance(_strategy(TrainerOptions(sequence_parallel=2, strategy=NAME)),
                      SequenceParallelStrategy)  # fmt: skip
    with pytest.raises(UsageError, match="must be at least 1"):
        TrainerOptions(sequence_parallel=0)


def test_processes_that_do_not_divide_are_refused(tmp_path):
    class Folder:
        folder = tmp_path

    options = TrainerOptions(accelerator="cpu", devices=3, sequence_parallel=2)
    with pytest.raises(UsageError, match="is 2, but there are 3 processes"):
        build_trainer(options, [], Folder())  # type: ignore[arg-type]


def test_a_batch_is_cut_at_the_parts_edges():
    batch = rows(0, 0, 2, 11)
    parts = [batch.part(*bounds) for bounds in ((0, 4), (4, 8), (8, 11))]
    assert torch.equal(torch.cat([p.tokens for p in parts], 1), batch.tokens)
    assert torch.equal(torch.cat([p.targets for p in parts], 1), batch.targets)
    assert parts[0].segments is None
    assert isinstance(parts[0], Batch)


def test_every_process_draws_its_own_dropout():
    drawn = []
    for rank in (0, 1):
        seed_step(5, 7, rank)
        drawn.append(torch.rand(4))
    assert not torch.equal(*drawn)
