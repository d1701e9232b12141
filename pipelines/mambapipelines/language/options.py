"""What ``mambabio pretrain`` can be told: frozen, checked, free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..bio.options import BackboneOptions, WindowOptions
from ..options import OptimizerOptions, TrainerOptions, require


@dataclass(frozen=True)
class LanguageData(WindowOptions):
    """Sequences and how they are cut into windows.

    Args:
        samples: sample sheet (TSV or CSV with path and perhaps label, split, region, circular), a
            folder of sequence files, one sequence file, or a folder that `mambabio prepare` made.
            Required; labels are not needed.
        n_policy: what happens to runs of N: split makes pieces, which no window joins, keep reads
            N as a letter. N and IUPAC codes are never scored.
        balanced: draw every label equally often instead of every base.
    """

    length_warmup: float = 0.5
    n_policy: Literal["split", "keep"] = "split"
    balanced: bool = False


@dataclass(frozen=True)
class LanguageModelOptions(BackboneOptions):
    """The language model's architecture."""


@dataclass(frozen=True)
class LanguageOptimizer(OptimizerOptions):
    """AdamW with linear warm-up and a cosine decay.

    Norms, biases, A_log, D and the delta bias take no weight decay.
    """

    lr: float = 4e-3
    warmup: float = 0.1


@dataclass(frozen=True)
class LanguageTrainer(TrainerOptions):
    """How long, where and how carefully to train.

    Args:
        segments: cut each full window into this many segments, read one after the other with the
            state handed over: memory is that of a segment (or of those in reach of a gradient).
            Shorter windows of the length warm-up have fewer segments of the same length.
        carry_gradient: through how many segments a loss is differentiated, its own included: 1
            hands the state over without a gradient, `segments` or more gives the whole window's
            exact gradient in the memory of one segment, at the cost of a second forward pass.
    """

    segments: int = 1
    carry_gradient: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.segments >= 1, "--trainer.segments", self.segments, "at least 1")
        require(
            self.carry_gradient >= 1, "--trainer.carry_gradient", self.carry_gradient, "at least 1"
        )
        require(
            self.segments == 1 or self.sequence_parallel == 1,
            "--trainer.segments",
            self.segments,
            "1 where --trainer.sequence_parallel splits the window over processes",
        )
        require(
            self.segments == 1 or self.precision != "16-mixed",
            "--trainer.precision",
            self.precision,
            "bf16-mixed or 32-true with --trainer.segments: 16-mixed scales gradients too late",
        )
