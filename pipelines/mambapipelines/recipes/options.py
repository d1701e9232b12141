"""Sections that several recipes share: frozen, checked when built, free of torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ..options import require


@dataclass(frozen=True)
class NetworkOptions:
    """A small language model.

    Args:
        d_model: width.
        n_layer: blocks.
        mixer_options: options by mixer; those of mixers that are not in use are ignored.
    """

    d_model: int = 64
    n_layer: int = 2
    mixer_options: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskTraining:
    """Training on fresh questions, a step at a time.

    Args:
        steps: updates at most.
        seconds: stop after that much training time; None for no limit.
        batch: sequences a step.
        lr: highest learning rate of AdamW.
        warmup: fraction of the steps in which the learning rate rises from 0.
        final: learning rate at the end as a fraction of `lr` (cosine); 1 keeps it constant.
        weight_decay: decoupled weight decay.
        beta2: decay of the squared gradient's running mean.
        eps: AdamW's; small, so that small gradients still move what they agree on.
        clip: largest norm of the gradient; 0 for none.
        validate_every: steps between validations on fresh questions.
        validation: questions of a validation.
        enough: validation accuracy at which `patience` begins to count.
        patience: validations in a row at `enough` or above that end the training; 0 never does.
        stages: shorter lengths of the task to begin with, rising.
        stage_share: fraction of the training that the stages take together, evenly.
        quiet: weight of a penalty on delta before its softplus, mean over positions, channels and
            selective layers: what need not be selected is pressed towards zero, also where the
            loss no longer tells the difference; 0 for none.
        quiet_from: fraction of the training at which the penalty begins.
    """

    steps: int = 10_000
    seconds: float | None = None
    batch: int = 64
    lr: float = 1e-3
    warmup: float = 0.02
    final: float = 0.02
    weight_decay: float = 0.0
    beta2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0
    validate_every: int = 500
    validation: int = 512
    enough: float = 1.0
    patience: int = 0
    stages: tuple[int, ...] = ()
    stage_share: float = 0.5
    quiet: float = 0.0
    quiet_from: float = 0.3

    def __post_init__(self) -> None:
        accepted = {
            "steps": (self.steps >= 1, "at least 1"),
            "seconds": (self.seconds is None or self.seconds > 0, "above 0"),
            "batch": (self.batch >= 1, "at least 1"),
            "lr": (self.lr > 0, "above 0"),
            "warmup": (0 <= self.warmup < 1, "at least 0 and below 1"),
            "final": (0 <= self.final <= 1, "from 0 to 1"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "beta2": (0 <= self.beta2 < 1, "at least 0 and below 1"),
            "eps": (self.eps > 0, "above 0"),
            "clip": (self.clip >= 0, "0 (none) or more"),
            "validate_every": (self.validate_every >= 1, "at least 1"),
            "validation": (self.validation >= 1, "at least 1"),
            "patience": (self.patience >= 0, "0 (never) or more"),
            "stages": (list(self.stages) == sorted(self.stages), "rising lengths"),
            "stage_share": (0 < self.stage_share < 1, "above 0 and below 1"),
            "quiet": (self.quiet >= 0, "0 (none) or more"),
            "quiet_from": (0 <= self.quiet_from < 1, "at least 0 and below 1"),
        }
        for name, (good, text) in accepted.items():
            require(good, f"--training.{name}", getattr(self, name), text)

    def stage(self, fraction: float) -> int:
        """Which stage this fraction of the training belongs to; ``len(stages)`` is the last one.

        >>> options = TaskTraining(stages=(16, 64), stage_share=0.5)
        >>> [options.stage(f) for f in (0.0, 0.24, 0.26, 0.49, 0.5, 1.0)]
        [0, 0, 1, 1, 2, 2]
        """
        if fraction >= self.stage_share:
            return len(self.stages)
        return int(fraction / self.stage_share * len(self.stages))


def changed(options: TaskTraining, changes: dict[str, Any], name: str) -> TaskTraining:
    """The options with some replaced.

    Raises:
        UsageError: a name that is no option.
    """
    names = [item.name for item in dataclasses.fields(options)]
    for key in changes:
        require(key in names, f"--{name}", key, "one of " + ", ".join(names))
    return dataclasses.replace(options, **changes)
