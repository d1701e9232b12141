"""Trainings of a tiny language model on two processes: ``python toy_ranks.py FOLDER [RANK]``.

Without RANK: a training whose windows are split over both, the same interrupted and resumed, and
one whose batches are. With RANK: one in which that process is killed in the middle.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path

import torch
from torch.utils.data import Dataset

from mambacore import LanguageModel, ModelConfig
from mambapipelines import environment
from mambapipelines.cli import program
from mambapipelines.interrupt import Interrupted
from mambapipelines.language.data import Batch
from mambapipelines.language.module import LanguageModule
from mambapipelines.loading import loader
from mambapipelines.options import OptimizerOptions, TrainerOptions
from mambapipelines.runs import Run
from mambapipelines.schedule import length_stages
from mambapipelines.training import StepData, train

STEPS = 8
TRAINER = TrainerOptions(
    max_steps=STEPS, accelerator="cpu", val_check_interval=4, log_every_n_steps=1, threads=1,
    accumulate_grad_batches=2, precision="64-true",
)  # fmt: skip
OPTIMIZER = OptimizerOptions(lr=0.01)
SPLIT = dataclasses.replace(TRAINER, devices=2, sequence_parallel=2)


def rows(number: int, first: int, count: int, window: int) -> Batch:
    """Row r of batch n is a function of both, wherever it is made."""
    made = []
    for row in range(first, first + count):
        random = torch.Generator().manual_seed(1000 * number + row)
        made.append(torch.randint(4, (window + 1,), generator=random))
    whole = torch.stack(made)
    return Batch(whole[:, :-1], whole[:, 1:])


class Maker:
    def __init__(self, place: tuple[int, int], kill: int, stop: int) -> None:
        self.place, self.kill, self.stop = place, kill, stop

    def __call__(self, number: int, window: int, batch: int) -> Batch:
        if number == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return rows(number, self.place[0] * batch, batch, window)


class Validation(Dataset):
    def __init__(self, place: tuple[int, int]) -> None:
        self.mine = range(place[0], 4, place[1])

    def __len__(self) -> int:
        return len(self.mine)

    def __getitem__(self, index: int) -> Batch:
        return rows(10_000 + self.mine[index], 0, 1, 31)


class ToyBases(StepData):
    def __init__(self, tokens: int, kill: int = -1, stop: int = -1) -> None:
        super().__init__()
        self.stages = length_stages(31, tokens, 15, 0.5)  # odd, so that parts differ
        self.kill, self.stop = kill, stop

    def batch_maker(self) -> Maker:
        return Maker(self._place(), self.kill, self.stop)

    def val_dataloader(self):
        return loader(Validation(self._place()))


def run_toy(folder: Path, trainer: TrainerOptions, tokens: int = 62, **signals: int) -> None:
    """Start, or go on with, a training in `folder`."""
    leader = environment.rank() == 0
    begun = (folder / "checkpoints" / "last.ckpt").exists()
    run = (Run.open if begun else Run.create)(folder, leader=leader)
    if leader and not begun:
        run.write_config("toy: true\n")
    torch.manual_seed(1)
    # float32 until Lightning casts it, so that every training starts from the same numbers.
    model = LanguageModel(ModelConfig(vocab_size=16, d_model=8, n_layer=2, layers=("mamba", "s4d")))
    try:
        train(
            LanguageModule(model, OPTIMIZER),
            ToyBases(tokens, **signals),
            run,
            seed=3,
            trainer_options=trainer,
            optimizer_options=OPTIMIZER,
        )
    finally:
        run.release()


def main(folder: Path, killed: str = "") -> None:
    if killed:
        endless = dataclasses.replace(SPLIT, max_steps=100_000)
        mine = killed == os.environ.get("LOCAL_RANK", "0")
        run_toy(folder / "killed", endless, kill=25 if mine else -1)
        return
    run_toy(folder / "split", SPLIT)
    # Processes agree on a signal at every tenth step only; so this one stops at step 10.
    longer = dataclasses.replace(SPLIT, max_steps=14)
    stopped = 0
    try:
        run_toy(folder / "stopped", longer, stop=3)
    except Interrupted as stop:
        stopped = stop.code
    if stopped != 143:
        raise RuntimeError("the signal did not stop the training")
    run_toy(folder / "stopped", longer)
    run_toy(folder / "unstopped", longer)
    run_toy(folder / "data", dataclasses.replace(TRAINER, devices=2), tokens=31)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), *sys.argv[2:])
    except BaseException as error:
        sys.exit(program.report(error, "toy", False))
