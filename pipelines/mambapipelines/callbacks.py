"""What a run does around the steps: schedule, measure, validate, save, stop.

Two callbacks in this order: `StepKeeper` (learning rate, random numbers, metrics, progress) and
`RunKeeper` (best and last checkpoint, early stopping, time budget, signals). All that they decide
is the same on every rank.
"""

from __future__ import annotations

import math
import random
import time
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mambacore.errors import DataError

from .checkpoints import POSITION
from .files import link_or_copy
from .guards import StepGuard
from .interrupt import Interrupted, StopFlag
from .metrics_file import MetricsFile, Row
from .options import OptimizerOptions, TrainerOptions
from .progress import Progress, amount, duration
from .runs import Run
from .schedule import Pace, learning_rate_factor


class Clock:
    """Seconds of training, over all resumes."""

    def __init__(self, before: float = 0.0) -> None:
        self._before = before
        self._started: float | None = None

    def start(self) -> None:
        """The training goes on now."""
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds trained so far."""
        return self._before + (time.monotonic() - self._started if self._started else 0.0)


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


class RunKeeper(Callback):
    """Saves the best and the last state, and ends the training when it should end.

    Args:
        run: where checkpoints go.
        pace: how far the training is.
        clock: its seconds.
        options: intervals and patience.
        monitor: the validation figure that makes a state the best; lower is better.
        full_length: fraction of the training from which windows have their full length; patience
            counts from there.
        flag: the signals.
    """

    def __init__(
        self,
        run: Run,
        pace: Pace,
        clock: Clock,
        options: TrainerOptions,
        monitor: str,
        full_length: float,
        flag: StopFlag,
    ) -> None:
        self._run = run
        self._pace = pace
        self._clock = clock
        self._options = options
        self._monitor = monitor
        self._full_length = full_length
        self._flag = flag
        self._progress: Progress | None = None
        self._best: float | None = None
        self._best_step = 0
        self._worse = 0
        self._ended = ""
        self._saved = (-1, 0.0)

    def show(self, progress: Progress | None) -> None:
        """Tell from this process: rank 0 of a distributed run."""
        self._progress = progress

    @property
    def ended(self) -> str:
        """Why the training ended, in words."""
        return self._ended

    @property
    def best_step(self) -> int:
        """The step of the best validation; 0 when there was none."""
        return self._best_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From the first moment there is something to resume from."""
        # After Lightning's own, which would end the training before it was saved.
        self._flag.install()
        self._clock.start()
        if trainer.global_step == 0:
            self._save(trainer)
        self._saved = (trainer.global_step, self._clock.elapsed)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Between two steps: the only place, besides validation, where a state is saved."""
        step = trainer.global_step
        accumulate = self._options.accumulate_grad_batches
        if trainer.fit_loop.epoch_loop.total_batch_idx % accumulate:
            return
        alone = trainer.world_size == 1
        if alone or step % 10 == 0:
            elapsed, signum = self._agree(trainer)
            self._pace.tick(step, elapsed)
            if signum:
                self._save(trainer)
                raise Interrupted(
                    signum,
                    f"stopped at step {step}, saved. Continue with: --resume {self._run.folder}",
                )
            if elapsed - self._saved[1] >= self._options.checkpoint_minutes * 60:
                self._save(trainer)
        if self._is_last(step + 1) or (step + 1) % self._options.val_check_interval == 0:
            # A validation may take longer than a stop signal allows: save before it.
            self._save(trainer)

    def _agree(self, trainer: Trainer) -> tuple[float, int]:
        """Seconds and signal, the largest of all ranks."""
        if trainer.world_size == 1:
            return self._clock.elapsed, self._flag.signum
        both = torch.tensor(
            [self._clock.elapsed, float(self._flag.signum)],
            dtype=torch.float64,
            device=trainer.strategy.root_device,
        )
        torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX)
        elapsed, signum = both.tolist()
        return elapsed, int(signum)

    def _is_last(self, step: int) -> bool:
        return step >= self._options.max_steps

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop at the end of the steps or of the time; Lightning then validates once more."""
        step = trainer.global_step
        if self._is_last(step):
            self._ended = f"all {step} steps are done"
        elif self._options.max_time and self._pace.fraction(step) >= 1.0:
            self._ended = f"the time of {self._options.max_time} is used up, after {step} steps"
        if self._ended:
            trainer.should_stop = True

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A signal during validation stops at once: the state before it is saved."""
        if self._flag.signum and trainer.world_size == 1:
            raise Interrupted(
                self._flag.signum,
                f"stopped while validating; continue with: --resume {self._run.folder}",
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best, count the worse."""
        if trainer.sanity_checking:
            return
        score = trainer.callback_metrics.get(self._monitor)
        better = False
        if score is not None and math.isfinite(float(score)):
            better = self._best is None or float(score) < self._best
            if better:
                self._best, self._best_step, self._worse = float(score), trainer.global_step, 0
            elif self._pace.fraction(trainer.global_step) >= self._full_length:
                self._worse += 1
        if self._options.patience and self._worse >= self._options.patience and not self._ended:
            self._ended = (
                f"no better {self._monitor} in {self._worse} validations, "
                f"at step {trainer.global_step}"
            )
            trainer.should_stop = True
        if self._progress:
            figures = "  ".join(
                f"{name.removeprefix('val/')} {float(value):.4f}"
                for name, value in sorted(trainer.callback_metrics.items())
                if name.startswith("val/")
            )
            mark = "  (best)" if better else ""
            self._progress.say(f"step {trainer.global_step} validation: {figures}{mark}")
        self._save(trainer, best=better)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The data has no end: Lightning comes here when the training has one.

        Raises:
            DataError: the training batches ran out before.
        """
        if not self._ended and not trainer.should_stop:
            raise DataError(
                f"the training data ended after step {trainer.global_step} of "
                f"{self._options.max_steps}: the loader must give batches without an end. What was "
                f"trained is in {self._run.last}."
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The state at the end."""
        self._save(trainer)

    def _save(self, trainer: Trainer, best: bool = False) -> None:
        step = trainer.global_step
        if step == self._saved[0] and not best:
            return
        trainer.save_checkpoint(self._run.best if best else self._run.last)
        if best and trainer.is_global_zero:
            link_or_copy(self._run.best, self._run.last)
        self._saved = (step, self._clock.elapsed)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The position, and how the training stood there."""
        checkpoint[POSITION] = {
            "step": trainer.global_step,
            "elapsed": self._clock.elapsed,
            "pace": self._pace.state_dict(),
            "ended": self._ended,
            "best_step": self._best_step,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "best": self._best,
            "best_step": self._best_step,
            "worse": self._worse,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._best = state_dict["best"]
        self._best_step = state_dict["best_step"]
        self._worse = state_dict["worse"]
