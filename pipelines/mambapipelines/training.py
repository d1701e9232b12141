"""One training with Lightning: builds the trainer, goes on from a checkpoint, keeps the run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from torch.utils.data import DataLoader

from mambacore.errors import DataError, UsageError

from . import checkpoints, quiet
from .clock import Clock
from .guards import StepGuard, explain_loading
from .interrupt import StopFlag
from .loading import BatchMaker, StepDataset, StepSampler, lag, loader
from .memory_plan import MemoryPlan, plan_memory
from .metrics_file import MetricsFile
from .options import OptimizerOptions, TrainerOptions
from .parallel.strategy import NAME, SequenceParallelStrategy, check_division, check_layers
from .parallel.watch import Watch
from .progress import Progress
from .run_keeper import RunKeeper
from .runs import Run
from .schedule import Pace, Stage, stage_at
from .step_keeper import StepKeeper


class StepData(LightningDataModule):
    """A data module whose training batches are numbered; sub-classes say how one is made.

    A sub-class sets `stages` (and `unit`, what a position of a batch's first tensor is called) and
    defines `batch_maker` and ``val_dataloader``.
    """

    stages: Sequence[Stage]
    workers: int = 0
    unit: str = "tokens"

    def __init__(self) -> None:
        super().__init__()
        self._start = 0
        self._accumulate = 1
        self._pace = Pace(1)

    def continue_at(self, position: int, accumulate: int, pace: Pace) -> None:
        """The next training batch is the first one of optimiser step `position`."""
        self._start = position * accumulate
        self._accumulate = accumulate
        self._pace = pace

    def stage(self, fraction: float) -> Stage:
        """Window and batch size after `fraction` of the training."""
        return stage_at(self.stages, fraction)

    def batch_maker(self) -> BatchMaker:
        """``(number, window, batch size) -> batch`` for this rank."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader:
        """Batches from the position on, without an end."""
        return loader(
            StepDataset(self.batch_maker()),
            StepSampler(self._start, self._accumulate, self._pace, self.stage),
            workers=self.workers,
            pin=self.on_gpu,
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """This process's part of the batch, where windows are split over processes.

        Raises:
            UsageError: the batch cannot be cut.
        """
        group = getattr(self.trainer.strategy, "sequence", None) if self.trainer else None
        if group is None or group.size == 1:
            return batch
        if not hasattr(batch, "part"):
            raise UsageError(
                f"a {type(batch).__name__} cannot be split over processes: it has no method "
                "part(start, stop); leave --trainer.sequence_parallel at 1."
            )
        return batch.part(*group.part(batch[0].shape[1]))

    def _place(self) -> tuple[int, int]:
        """Which of how many data ranks this process belongs to: windows are dealt out to those."""
        if self.trainer is None:
            return 0, 1
        place = getattr(self.trainer.strategy, "data_place", None)
        return place or (self.trainer.global_rank, self.trainer.world_size)

    @property
    def on_gpu(self) -> bool:
        """Whether batches travel to a GPU."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


@dataclass(frozen=True)
class Outcome:
    """How a training ended: at which step, why, at which step the best validation was, and on
    which device (the module is back on the CPU)."""

    step: int
    ended: str
    best_step: int
    device: str = "cpu"


def resolve_precision(options: TrainerOptions) -> str:
    """``auto`` is bf16-mixed on a GPU that can, 32-true elsewhere."""
    if options.precision != "auto":
        return options.precision
    gpu = options.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32-true"


class _Unprofiled(PassThroughProfiler):
    """Lightning opens some eighty contexts a step for a profiler: here all are the same one."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._nothing


def build_trainer(options: TrainerOptions, callbacks: list, run: Run) -> Trainer:
    """Lightning's Trainer with the options' settings and nothing that it would write or print.

    Raises:
        UsageError: an option that Lightning refuses.
    """
    logger = False
    if options.tensorboard:
        try:
            from lightning.pytorch.loggers import TensorBoardLogger

            logger = TensorBoardLogger(run.folder, name="", version="tensorboard")
        except ModuleNotFoundError:
            raise UsageError(
                "--trainer.tensorboard needs the package tensorboard: "
                "pip install 'mambakit[tensorboard]'."
            ) from None
    settings = {
        "accelerator": options.accelerator,
        "devices": options.devices,
        "num_nodes": options.num_nodes,
        "strategy": _strategy(options),
        "precision": resolve_precision(options),
        "accumulate_grad_batches": options.accumulate_grad_batches,
        "deterministic": options.deterministic,
        "max_steps": options.max_steps,
        "max_epochs": -1,
        # Counted over all batches, because the data has no epochs.
        "check_val_every_n_epoch": None,
        "val_check_interval": options.val_check_interval * options.accumulate_grad_batches,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "logger": logger,
        "callbacks": callbacks,
        "plugins": [checkpoints.AtomicCheckpoints()],
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": run.folder,
    }
    clash = sorted(set(options.extra) & set(settings))
    if clash:
        raise UsageError(f"--trainer.extra has {clash[0]!r}, which has its own option or is fixed.")
    settings["profiler"] = _Unprofiled()
    try:
        trainer = Trainer(**{**settings, **options.extra})
    except (ValueError, TypeError) as error:
        raise UsageError(f"the trainer options were refused: {error}") from None
    check_division(trainer.world_size, options.sequence_parallel)
    if options.cuda_graphs and trainer.world_size > 1:
        raise UsageError(
            f"--trainer.cuda_graphs works with one process, not {trainer.world_size}: leave it out."
        )
    return trainer


def _strategy(options: TrainerOptions) -> str | SequenceParallelStrategy:
    if options.sequence_parallel == 1:
        return options.strategy
    if options.strategy not in ("auto", "ddp", NAME):
        raise UsageError(
            f"--trainer.sequence_parallel is a strategy of its own: leave --trainer.strategy at "
            f"auto, not {options.strategy!r}."
        )
    return SequenceParallelStrategy(options.sequence_parallel)


def _plan(
    trainer: Trainer, module: LightningModule, data: StepData, options: TrainerOptions
) -> MemoryPlan:
    half = resolve_precision(options) in ("bf16-mixed", "16-mixed")
    device = trainer.strategy.root_device
    # Where windows are split, a process holds its part of one.
    parts = options.sequence_parallel
    stages = [replace(stage, window=-(-stage.window // parts)) for stage in data.stages]
    return plan_memory(module, stages, options, device, autocast=half)


def train(
    module: LightningModule,
    data: StepData,
    run: Run,
    *,
    seed: int,
    trainer_options: TrainerOptions,
    optimizer_options: OptimizerOptions,
    monitor: str = "val/loss",
    progress: Progress | None = None,
    extended: bool = False,
    verbose: bool = False,
) -> Outcome:
    """Train `module` on `data` into `run`, from the run's last checkpoint if it has one.

    Args:
        module: its ``training_step`` returns the loss, or a dictionary of scalars with it; in
            validation it logs ``val/...`` figures.
        data: numbered batches.
        run: a run folder, new or opened for resuming.
        seed: random numbers of a step are a function of this and the step.
        trainer_options: how long, where and how carefully.
        optimizer_options: the learning rate's schedule; the module builds its own optimiser.
        monitor: the validation figure whose smallest value makes a state the best.
        progress: where to show progress, on rank 0.
        extended: train on although the checkpoint says that the training had ended.
        verbose: leave Lightning's remarks on.

    Raises:
        Interrupted: SIGINT or SIGTERM, after the state was saved.
        UsageError: an option that Lightning refuses.
        DataError: too many steps in a row that were not finite; too little GPU memory (with what
            would fit); training data that ends, or a worker that dies; a damaged checkpoint, or
            one that could not be written: the previous one is whole.
    """
    if not verbose:
        quiet.silence()
    if trainer_options.threads:
        torch.set_num_threads(trainer_options.threads)
    if resolve_precision(trainer_options) == "64-true":
        module.double()  # Lightning does so after it has read a checkpoint, which would be rounded
    accumulate = trainer_options.accumulate_grad_batches
    pace = Pace(
        trainer_options.max_steps, trainer_options.max_seconds, lag(data.workers, accumulate)
    )
    position, before = 0, 0.0
    resume = run.last if run.last.is_file() else None
    if resume:
        saved = checkpoints.read(resume)[checkpoints.POSITION]
        position, before = saved["step"], saved["elapsed"]
        if saved["ended"] and not extended:
            module.load_state_dict(checkpoints.read(resume)["state_dict"])
            return Outcome(position, saved["ended"], saved["best_step"])
        pace.load_state_dict(saved["pace"])
    replayed = getattr(module, "replayed", None)
    if replayed is not None:
        replayed.enabled = trainer_options.cuda_graphs
    if trainer_options.sequence_parallel > 1:
        check_layers(module, trainer_options.sequence_parallel)
    clock, flag = Clock(before), StopFlag()
    data.continue_at(position, accumulate, pace)

    full_length = data.stages[-1].start
    keeper = RunKeeper(run, pace, clock, trainer_options, monitor, full_length, flag)
    guard = StepGuard(trainer_options, run.last)
    steps = StepKeeper(pace, clock, seed, trainer_options, optimizer_options, data.unit, guard)
    watch = Watch(f"Continue with: --resume {run.folder}")
    trainer = build_trainer(trainer_options, [steps, keeper, guard, watch], run)
    plan = _plan(trainer, module, data, trainer_options)
    if trainer.is_global_zero:
        steps.show(MetricsFile(run.metrics, until=position), progress)
        keeper.show(progress)
        if progress and (line := plan.line(data.unit)):
            progress.say(line)
    checkpoints.place(trainer, position, accumulate)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except torch.OutOfMemoryError:
        raise DataError(plan.advice()) from None
    except (RuntimeError, DataError, OSError, EOFError) as error:
        found = explain_loading(error)
        if found is None and isinstance(error, RuntimeError):
            found = watch.explain(error)
        raise found or error from None
    finally:
        flag.remove()
        if replayed is not None:
            replayed.clear()
        if progress:
            progress.close()
    device = str(trainer.strategy.root_device)
    return Outcome(trainer.global_step, keeper.ended, keeper.best_step, device)
