"""Options that every training shares: frozen, validated when built, free of torch.

``fit`` shows them as dotted options (``--trainer.max_steps 500``, ``--optimizer.lr 0.002``) and
as sections of the YAML files that ``--config`` reads.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from mambacore.errors import UsageError

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "64-true")


def require(condition: bool, name: str, value: object, accepted: str) -> None:
    """Raise a `UsageError` that names the option, its value and what it accepts."""
    if not condition:
        raise UsageError(f"{name} is {value!r}; it must be {accepted}.")


def seconds(text: str | None, name: str = "--trainer.max_time") -> float | None:
    """A duration: ``90s``, ``8m``, ``1.5h``, ``2d``, ``HH:MM:SS`` or ``DD:HH:MM:SS``.

    >>> seconds("8m"), seconds("00:08:00"), seconds("01:00:00:30"), seconds(None)
    (480.0, 480.0, 86430.0, None)
    """
    if text is None:
        return None
    text = str(text).strip().lower()
    value = 0.0
    if match := re.fullmatch(r"(\d+(?:\.\d*)?)\s*(s|m|h|d)", text):
        value = float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    elif match := re.fullmatch(r"(?:(\d+):)?(\d+):(\d+):(\d+)", text):
        days, hours, minutes, rest = (int(part or 0) for part in match.groups())
        value = ((days * 24 + hours) * 60 + minutes) * 60.0 + rest
    require(value > 0, name, text, "a duration such as 90s, 8m, 1.5h or HH:MM:SS")
    return value


def size(text: str | None, name: str = "--trainer.memory_budget") -> int | None:
    """An amount of memory in bytes: ``40GiB``, ``512MiB``, ``40GB``, ``40G`` (as GiB).

    >>> size("40GiB") == 40 * 2**30, size("1.5 MB"), size(None)
    (True, 1500000, None)
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([kmgt])(ib?|b)?", str(text).strip().lower())
    unit = 1000 if match and match[3] == "b" else 1024
    value = int(float(match[1]) * unit ** ("kmgt".index(match[2]) + 1)) if match else 0
    require(value > 0, name, text, "an amount of memory such as 40GiB or 512MiB")
    return value


@dataclass(frozen=True)
class TrainerOptions:
    """How long, where and how carefully to train; most names are those of ``lightning.Trainer``.

    Args:
        max_steps: optimiser steps in all; the schedules of learning rate and length span them.
        max_time: stop after this much training time (90s, 8m, 1.5h, HH:MM:SS), over all resumes;
            the schedules then follow whichever of steps and time is further on.
        accelerator: auto, cpu, gpu or another name that Lightning knows.
        devices: how many devices, or which (a list such as 0,2), or auto for all.
        num_nodes: machines of a distributed run.
        strategy: Lightning's strategy, e.g. ddp; auto chooses it when there are several devices.
        sequence_parallel: processes that each window is split over (so that a window may be as long
            as the memory of that many devices allows); divides devices times num_nodes.
        precision: auto (bf16-mixed on a GPU, 32-true elsewhere), 32-true, bf16-mixed, 16-mixed
            or 64-true.
        checkpointing: what the layers keep for the backward pass: none, everything; selective,
            what is dear to compute again; block, their inputs alone; auto, as much as fits
            memory_budget (on a CPU without a budget, everything).
        memory_budget: what a step may take of the device's memory, e.g. 40GiB, for auto; by default
            the GPU's.
        cuda_graphs: record forward and backward pass once a shape of batch and replay them, on one
            GPU: several times as fast where a model has many small layers, which Python cannot
            launch as fast as they run.
        gradient_clip_val: largest norm of the gradient; 0 switches clipping off.
        max_skipped_steps: steps in a row with a loss or gradient that is not finite, none of which
            is applied, that end the training; 0 never ends it.
        accumulate_grad_batches: batches that make one optimiser step.
        val_check_interval: steps between validations.
        patience: validations without a better score, once the windows have reached full length,
            that end the training; 0 never ends it early.
        log_every_n_steps: steps between rows of metrics.csv.
        checkpoint_minutes: minutes between checkpoints, besides those at validations (at most 5).
        threads: CPU threads; by default what PyTorch chooses, one a core.
        deterministic: refuse operations that are not reproducible on a GPU.
        tensorboard: also write TensorBoard files (needs the package tensorboard).
        extra: further arguments of ``lightning.Trainer``, e.g. {profiler: simple}.
    """

    max_steps: int = 5000
    max_time: str | None = None
    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"
    sequence_parallel: int = 1
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true"] = "auto"
    checkpointing: Literal["auto", "none", "selective", "block"] = "auto"
    memory_budget: str | None = None
    cuda_graphs: bool = False
    gradient_clip_val: float = 1.0
    max_skipped_steps: int = 20
    accumulate_grad_batches: int = 1
    val_check_interval: int = 500
    patience: int = 5
    log_every_n_steps: int = 20
    checkpoint_minutes: float = 4.0
    threads: int | None = None
    deterministic: bool = False
    tensorboard: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        accepted = {
            "max_steps": (self.max_steps >= 1, "at least 1"),
            "num_nodes": (self.num_nodes >= 1, "at least 1"),
            "sequence_parallel": (self.sequence_parallel >= 1, "at least 1"),
            "accumulate_grad_batches": (self.accumulate_grad_batches >= 1, "at least 1"),
            "val_check_interval": (self.val_check_interval >= 1, "at least 1"),
            "log_every_n_steps": (self.log_every_n_steps >= 1, "at least 1"),
            "max_skipped_steps": (self.max_skipped_steps >= 0, "0 (never) or more"),
            "patience": (self.patience >= 0, "0 (never) or more"),
            "gradient_clip_val": (self.gradient_clip_val >= 0, "0 (off) or more"),
            "checkpoint_minutes": (0 < self.checkpoint_minutes <= 5, "above 0 and at most 5"),
            "threads": (self.threads is None or self.threads >= 1, "at least 1"),
        }
        for name, (good, text) in accepted.items():
            require(good, f"--trainer.{name}", getattr(self, name), text)
        seconds(self.max_time)
        size(self.memory_budget)
        require(
            self.memory_budget is None or self.checkpointing == "auto",
            "--trainer.checkpointing",
            self.checkpointing,
            "auto where a --trainer.memory_budget is given",
        )

        require(
            not self.cuda_graphs or self.sequence_parallel == 1,
            "--trainer.sequence_parallel",
            self.sequence_parallel,
            "1 with --trainer.cuda_graphs",
        )

    @property
    def budget_bytes(self) -> int | None:
        """`memory_budget` in bytes."""
        return size(self.memory_budget)

    @property
    def max_seconds(self) -> float | None:
        """`max_time` in seconds."""
        return seconds(self.max_time)


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW with linear warm-up and a cosine decay.

    Norms, biases, A_log, D and the delta bias take no weight decay.

    Args:
        lr: the highest learning rate.
        weight_decay: decoupled weight decay.
        beta1: decay of the gradient's running mean.
        beta2: decay of the squared gradient's running mean.
        warmup: fraction of the training in which the learning rate rises from 0.
        final: the learning rate at the end, as a fraction of `lr`.
    """

    lr: float = 4e-3
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    warmup: float = 0.05
    final: float = 0.02

    def __post_init__(self) -> None:
        require(self.lr > 0, "--optimizer.lr", self.lr, "above 0")
        require(self.weight_decay >= 0, "--optimizer.weight_decay", self.weight_decay, ">= 0")
        for name in ("beta1", "beta2", "warmup", "final"):
            value = getattr(self, name)
            require(0 <= value < 1, f"--optimizer.{name}", value, "at least 0 and below 1")


def as_dict(options: Any) -> dict[str, Any]:
    """A dataclass as plain lists and dictionaries, for YAML.

    >>> as_dict(OptimizerOptions(lr=0.001))["lr"]
    0.001
    """
    plain = dataclasses.asdict(options)
    return {key: list(v) if isinstance(v, tuple) else v for key, v in plain.items()}
