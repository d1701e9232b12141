"""A tiny training that runs in a second: numbers in, a linear classifier with dropout out.

``python toy.py RUN WORKERS [SIGNAL AT]`` trains in a sub-process; at batch AT it sends itself
SIGNAL, as a user or the system would.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mambapipelines.interrupt import Interrupted
from mambapipelines.loading import StepDataset, loader
from mambapipelines.options import OptimizerOptions, TrainerOptions
from mambapipelines.runs import Run
from mambapipelines.schedule import length_stages
from mambapipelines.training import Outcome, StepData, train

STEPS = 30
TRAINER = TrainerOptions(
    max_steps=STEPS,
    accelerator="cpu",
    val_check_interval=7,
    log_every_n_steps=4,
    threads=1,
    accumulate_grad_batches=2,
)
OPTIMIZER = OptimizerOptions(lr=0.05)


class Batch(NamedTuple):
    values: Tensor
    labels: Tensor


class MakeBatch:
    """Picklable; can send a signal to the training process at a batch."""

    def __init__(self, signum: int = 0, at: int = -1) -> None:
        self.signum, self.at, self.main = signum, at, os.getpid()

    def __call__(self, number: int, window: int, batch: int) -> Batch:
        if number == self.at:
            os.kill(self.main, self.signum)
        random = np.random.default_rng((7, number))
        values = torch.from_numpy(random.normal(size=(batch, window)).astype(np.float32))
        return Batch(values, (values.mean(1) > 0).long())


class ToyData(StepData):
    def __init__(self, workers: int = 0, signum: int = 0, at: int = -1) -> None:
        super().__init__()
        self.workers = workers
        self.stages = length_stages(64, 1024, 16, 0.5)
        self.make = MakeBatch(signum, at)
        self.seen: list[tuple[int, int]] = []

    def batch_maker(self):
        return self.make

    def val_dataloader(self):
        batches = [MakeBatch()(10_000 + i, 64, 32) for i in range(3)]

        class Fixed(StepDataset):
            def __init__(self) -> None: ...

            def __len__(self) -> int:
                return len(batches)

            def __getitem__(self, i):
                return batches[i]

        return loader(Fixed())


class ToyModule(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(2, 2, generator=generator))
        self.dropout = nn.Dropout(0.3)
        self.stop_in_validation = False

    def loss(self, batch: Batch) -> Tensor:
        features = torch.stack([batch.values.mean(1), batch.values.std(1)], 1)
        logits = self.dropout(features) @ self.weight
        return nn.functional.cross_entropy(logits, batch.labels)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Batch, index: int) -> None:
        if self.stop_in_validation and self.trainer.global_step == 21 and index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        score = self.validation_score()
        self.log("val/loss", self.loss(batch) if score is None else score, batch_size=32)

    def validation_score(self) -> float | None:
        """A score to report instead of the loss."""

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=OPTIMIZER.lr)


def run_toy(
    folder: Path,
    *,
    data: StepData | None = None,
    module: LightningModule | None = None,
    trainer: TrainerOptions = TRAINER,
    **settings,
) -> Outcome:
    """Start the toy training in `folder`, or go on from where it stopped."""
    run = Run.open(folder) if (folder / "checkpoints" / "last.ckpt").exists() else None
    run = run or Run.create(folder)
    if not run.config.exists():
        run.write_config("toy: true\n")
    try:
        return train(
            module or ToyModule(),
            data or ToyData(),
            run,
            seed=3,
            trainer_options=trainer,
            optimizer_options=OPTIMIZER,
            **settings,
        )
    finally:
        run.release()


if __name__ == "__main__":
    folder, workers = Path(sys.argv[1]), int(sys.argv[2])
    signum, at = (int(a) for a in (sys.argv[3:5] or (0, -1)))
    try:
        run_toy(folder, data=ToyData(workers, signum, at))
    except Interrupted as stop:
        sys.exit(stop.code)
