"""The language model's data: random training windows of a store, tiled validation windows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mambabio.language import LanguageBatch, LanguageTiles, LanguageWindows
from mambabio.packing import PackedBatch
from mambabio.store import SequenceStore

from ..bio.store_data import StoreData
from .options import LanguageData


class Batch(NamedTuple):
    """tokens, targets: (B, L) uint8. segments: (B, L) int32, or None for rows of one sequence.

    Every tensor can be cut along L: the base after the last position stands in the targets.
    """

    tokens: Tensor
    targets: Tensor
    segments: Tensor | None = None

    def part(self, start: int, stop: int) -> Batch:
        """Positions start to stop of every row."""
        return Batch(*(None if t is None else t[:, start:stop] for t in self))  # type: ignore


def to_tensors(batch: LanguageBatch | PackedBatch) -> Batch:
    """The same memory as tensors, packed rows with their targets."""
    if isinstance(batch, PackedBatch):
        batch = batch.for_language()
    tokens, targets = (torch.from_numpy(np.ascontiguousarray(part)) for part in batch[:2])
    segments = None if batch.segments is None else torch.from_numpy(batch.segments)
    return Batch(tokens, targets, segments)


class LanguageSequences(StoreData):
    """Windows with the base that follows each of theirs.

    Args:
        store: from `mambabio.store.build_store`.
        options: how to cut it.
        seed: of the training windows.
    """

    def __init__(self, store: SequenceStore, options: LanguageData, seed: int) -> None:
        validation = None
        if store.select("val"):
            validation = LanguageTiles(store, "val", options.window, most=options.val_windows)
        super().__init__(
            store, options, LanguageWindows, validation, to_tensors, seed=seed,
            balanced=options.balanced,
        )  # fmt: skip
