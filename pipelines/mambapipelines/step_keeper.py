"""What a run does around each step: learning rate, random numbers, metrics, progress.

All that it decides is the same on every rank.
"""

from __future__ import annotations

import math
import random
import time
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from .clock import Clock
from .guards import StepGuard
from .metrics_file import MetricsFile, Row
from .options import OptimizerOptions, TrainerOptions
from .progress import Progress, amount, duration
from .schedule import Pace, learning_rate_factor


def _parts(trainer: Trainer) -> int:
    """How many processes a window is split over."""
    group = getattr(trainer.strategy, "sequence", None)
    return 1 if group is None else group.size


def seed_step(seed: int, number: int, rank: int) -> None:
    """Random numbers (dropout) as a function of seed, batch number and rank, so that a resumed
    training needs no saved generator states."""
    words = np.random.SeedSequence((seed, number, rank)).generate_state(2, np.uint64)
    # Not torch.manual_seed: where CUDA is not in use, it keeps a traceback of every call.
    first = int(words[0] >> 1)
    torch.default_generator.manual_seed(first)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(first)
    random.seed(int(words[1]))
    np.random.seed(int(words[1] & 0xFFFFFFFF))  # noqa: NPY002  libraries may use the old interface


class StepKeeper(Callback):
    """Sets learning rate and random numbers before a step; measures and shows after it."""

    def __init__(
        self,
        pace: Pace,
        clock: Clock,
        seed: int,
        trainer_options: TrainerOptions,
        optimizer_options: OptimizerOptions,
        unit: str,
        guard: StepGuard,
    ) -> None:
        self._pace = pace
        self._clock = clock
        self._seed = seed
        self._options = trainer_options
        self._optimizer = optimizer_options
        self._unit = unit
        self._guard = guard
        self._metrics: MetricsFile | None = None
        self._progress: Progress | None = None
        self._tokens = 0
        self._batches = 0
        # Of the batches since the last row: on the device, and read back from a checkpoint.
        self._figures: dict[str, list[torch.Tensor]] = {}
        self._earlier: dict[str, list[float]] = {}
        self._shown = (0.0, 0)

    def show(self, metrics: MetricsFile, progress: Progress | None) -> None:
        """Write and show from this process: rank 0 of a distributed run."""
        self._metrics, self._progress = metrics, progress

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Throughput is measured from here."""
        self._shown = (time.monotonic(), self._tokens)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before a step."""
        step = trainer.global_step
        factor = learning_rate_factor(
            # The rise starts at the first step, not at zero, which would waste it.
            self._pace.fraction(step) + 1.0 / self._pace.max_steps,
            self._optimizer.warmup,
            self._optimizer.final,
        )
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self._optimizer.lr * min(1.0, factor)
        number = trainer.fit_loop.epoch_loop.total_batch_idx
        seed_step(self._seed, number, trainer.global_rank)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """After a step."""
        figures = outputs if isinstance(outputs, dict) else {"loss": outputs}
        for name, value in figures.items():
            # Left on the device: reading a figure would wait for it.
            self._figures.setdefault(name, []).append(value.detach())
        self._batches += 1
        self._tokens += batch[0].numel() * trainer.world_size
        step = trainer.global_step
        whole = self._batches % self._options.accumulate_grad_batches == 0
        if whole and step % self._options.log_every_n_steps == 0:
            self._record(trainer, step, batch)

    def _record(self, trainer: Trainer, step: int, batch: Any) -> None:
        now = time.monotonic()
        rate = (self._tokens - self._shown[1]) / max(now - self._shown[0], 1e-9)
        self._shown = (now, self._tokens)
        means = self._means(trainer)
        row: Row = {
            "step": step,
            "seconds": round(self._clock.elapsed, 2),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            **{f"train/{name}": value for name, value in means.items()},
            "train/window": batch[0].shape[1] * _parts(trainer),
            "train/batch": batch[0].shape[0],
            "train/tokens": self._tokens,
            "train/tokens_per_second": round(rate),
            **self._guard.figures(),
        }
        self._write(trainer, row)
        self._guard.check(step)
        fraction = self._pace.fraction(step)
        elapsed = self._clock.elapsed
        left = elapsed / fraction * (1 - fraction) if fraction > 0 else math.inf
        text = (
            f"step {step}/{self._options.max_steps}  window {row['train/window']}  "
            f"loss {means['loss']:.3f}  {amount(rate)} {self._unit}/s  {duration(elapsed)}"
            + (f", about {duration(left)} left" if math.isfinite(left) else "")
        )
        if self._progress:
            self._progress.update(fraction, text)

    def _means(self, trainer: Trainer) -> dict[str, float]:
        """Of the batches since the last row and of all ranks, those that are finite."""
        values = torch.stack([torch.stack(kept).double() for kept in self._figures.values()])
        if self._earlier:
            earlier = [self._earlier[name] for name in self._figures]
            values = torch.cat([values.new_tensor(earlier), values], 1)
        finite = values.isfinite()
        sums = torch.stack([torch.where(finite, values, 0.0).sum(1), finite.sum(1)])
        if trainer.world_size > 1:
            reduced = trainer.strategy.reduce(sums.to(trainer.strategy.root_device), None, "mean")
            assert isinstance(reduced, torch.Tensor)
            sums = reduced
        totals, counts = sums.tolist()
        names = list(self._figures)
        self._figures, self._earlier, self._batches = {}, {}, 0
        return {
            name: total / count if count else math.nan
            for name, total, count in zip(names, totals, counts, strict=True)
        }

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the validation's figures."""
        if trainer.sanity_checking:
            return
        row: Row = {"step": trainer.global_step, "seconds": round(self._clock.elapsed, 2)}
        row |= {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        self._write(trainer, row)
        # Validation is no training: it does not count in the next throughput.
        self._shown = (time.monotonic(), self._tokens)

    def _write(self, trainer: Trainer, row: Row) -> None:
        if self._metrics is not None:
            self._metrics.append(row)
            for logger in trainer.loggers:
                figures = {k: float(v) for k, v in row.items() if k != "step"}
                logger.log_metrics(figures, step=int(row["step"]))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        figures = {
            name: [*self._earlier.get(name, []), *(torch.stack(kept).tolist() if kept else [])]
            for name, kept in self._figures.items()
        }
        figures = figures or self._earlier
        return {"tokens": self._tokens, "batches": self._batches, "figures": figures}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._tokens = state_dict["tokens"]
        self._batches = state_dict["batches"]
        self._earlier = {name: list(kept) for name, kept in state_dict["figures"].items()}
