"""What a run keeps and when it ends: checkpoints, early stopping, time budget, signals.

The callback stands behind `step_keeper.StepKeeper`, whose figures of a validation are written
before it saves. All that it decides is the same on every rank.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mambacore.errors import DataError

from .checkpoints import POSITION
from .clock import Clock
from .files import link_or_copy
from .interrupt import Interrupted, StopFlag
from .options import TrainerOptions
from .progress import Progress
from .runs import Run
from .schedule import Pace


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
