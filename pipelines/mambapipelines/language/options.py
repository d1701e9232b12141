"""What ``mambabio pretrain`` can be told: frozen, checked, free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..bio.options import BackboneOptions, WindowOptions
from ..options import OptimizerOptions


@dataclass(frozen=True)
class LanguageData(WindowOptions):
    """Sequences and how they are cut into windows.

    Args:
        samples: sample sheet (TSV or CSV with path and perhaps label, split, region, circular), a
            folder of sequence files, or one sequence file. Required; labels are not needed.
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
