"""How a training keeps within memory: what is checkpointed, what it needs, what would fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mambacore.backbone import Backbone
from mambacore.checkpointing import set_checkpointing
from mambacore.config import ModelConfig
from mambacore.errors import UsageError
from mambacore.language_model import LanguageModel
from mambacore.memory import (
    PIECE,
    checkpointing_for,
    longest_that_fits,
    memory_of_training,
    seconds_per_token,
)

from .options import TrainerOptions
from .schedule import Stage

GIB = 1 << 30
# Of a GPU: the rest is the context's, and what the allocator holds in pieces that do not fit.
# A peak of 86 % ran out of memory on an H200.
_USABLE = 0.82


@dataclass(frozen=True)
class MemoryPlan:
    """What was decided for a training, and what the formula says about it.

    mode, piece: as given to `mambacore.checkpointing.set_checkpointing`. config: the backbone's;
    None where the formula does not cover the model. stage: the one that needs most. head, autocast:
    as in `mambacore.memory.memory_of_training`. available: bytes of the GPU, 0 on a CPU.
    """

    mode: str
    piece: int | None
    config: ModelConfig | None
    stage: Stage
    head: str
    autocast: bool
    available: int

    def line(self, unit: str) -> str:
        """The prediction in one line; empty where there is none."""
        if self.config is None or not self.available:
            return ""
        need = self._need(self.mode, self.piece)
        rate = 1 / seconds_per_token(self.config, checkpointing=self.mode)
        return (
            f"expected: {need.total / GIB:.1f} GiB of {self.available / GIB:.0f} for "
            f"{self.stage.batch} x {self.stage.window:,} {unit} (checkpointing {self.mode}), "
            f"at most {rate / 1e6:.2g} M {unit}/s on an H200"
        )

    def advice(self) -> str:
        """After running out of memory: what would fit."""
        stage = self.stage
        start = (
            f"out of GPU memory with {stage.batch} x {stage.window:,} positions a step and "
            f"checkpointing {self.mode}"
        )
        if self.config is None or not self.available:
            harder = {"none": "selective", "selective": "block"}.get(self.mode)
            first = f"use --trainer.checkpointing {harder}, or " if harder else "use "
            return f"{start}: {first}fewer positions a step or shorter windows."
        need = self._need(self.mode, self.piece).total
        room = self._room
        options = []
        for mode in ("selective", "block"):
            if mode != self.mode and self._need(mode, PIECE).total < min(need, room):
                total = self._need(mode, PIECE).total / GIB
                options.append(f"--trainer.checkpointing {mode} ({total:.1f} GiB)")
                break
        best = self.mode if self.mode != "none" else "selective"
        longest = longest_that_fits(self.config, 1, room, **self._settings(best, PIECE))
        rows = min(stage.batch - 1, longest // stage.window)
        if rows >= 1:
            options.append(f"{rows} windows a step (--data.tokens {rows * stage.window})")
        elif longest and longest < stage.window:
            options.append(f"windows of at most {longest:,} with --trainer.checkpointing {best}")
        if self.config.residual_dtype == "float32" and self.autocast:
            options.append("--model.residual_dtype bfloat16")
        text = "; ".join(options) or "a smaller model"
        return (
            f"{start}, which needs about {need / GIB:.1f} GiB of {self.available / GIB:.0f}. "
            f"What would fit: {text}."
        )

    @property
    def _room(self) -> int:
        return int(_USABLE * self.available)

    def _settings(self, mode: str, piece: int | None) -> dict:
        return {
            "checkpointing": mode, "piece": piece, "head": self.head, "autocast": self.autocast,
        }  # fmt: skip

    def _need(self, mode: str, piece: int | None):
        assert self.config is not None
        stage = self.stage
        return memory_of_training(
            self.config, stage.batch, stage.window, **self._settings(mode, piece)
        )


def plan_memory(
    module: nn.Module,
    stages: Sequence[Stage],
    options: TrainerOptions,
    device: torch.device,
    *,
    autocast: bool,
) -> MemoryPlan:
    """Decide what the blocks of `module` keep, and set it.

    Args:
        module: holds the model.
        stages: windows and batches of the training.
        options: checkpointing, memory_budget and sequence_parallel.
        device: where it trains.
        autocast: in half precision.

    Raises:
        UsageError: a budget for a model that the formula does not cover, or that nothing meets.
    """
    stage = max(stages, key=lambda stage: (stage.window * stage.batch, stage.window))
    available = 0
    if device.type == "cuda":
        available = torch.cuda.get_device_properties(device).total_memory
    budget = options.budget_bytes or int(_USABLE * available)
    head = "pooling"
    if any(isinstance(part, LanguageModel) for part in module.modules()):
        head = "chunked"
    config = _covered(module, stage, options)
    settings = {"head": head, "autocast": autocast}
    mode, piece = options.checkpointing, None
    if mode == "auto":
        mode = "none"
        if config is None:
            if options.memory_budget is not None:
                raise UsageError(
                    "--trainer.memory_budget: there is no memory formula for this model (it covers "
                    "mamba on one device); name --trainer.checkpointing selective or block instead."
                )
            mode = "block" if options.sequence_parallel > 1 and available else "none"
        elif budget:
            mode, piece = checkpointing_for(config, stage.batch, stage.window, budget, **settings)
    if mode != "none" and stage.batch * stage.window > PIECE:
        piece = PIECE
    set_checkpointing(module, mode, piece=piece)
    plan = MemoryPlan(mode, piece, config, stage, head, autocast, available)
    if options.memory_budget is not None and config is not None:
        need = plan._need(mode, piece).total
        if need > budget:
            raise UsageError(
                f"--trainer.memory_budget {options.memory_budget}: {stage.batch} x "
                f"{stage.window:,} positions need {need / GIB:.3g} GiB even with checkpointing "
                f"{mode}; use fewer positions a step, shorter windows or "
                "--model.residual_dtype bfloat16."
            )
    return plan


def _covered(module: nn.Module, stage: Stage, options: TrainerOptions) -> ModelConfig | None:
    """The backbone's configuration, if the formula holds for it."""
    backbones = [part for part in module.modules() if isinstance(part, Backbone)]
    if len(backbones) != 1 or options.sequence_parallel > 1:
        return None
    config = backbones[0].config
    try:
        memory_of_training(config, stage.batch, stage.window)
    except UsageError:
        return None
    return config
