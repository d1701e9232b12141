"""The species classifier's data: a store, random training windows, tiled validation windows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mambabio.packing import PackedBatch
from mambabio.store import SequenceStore
from mambabio.windows import TrainingWindows, WindowBatch, tile_windows

from .options import DataOptions
from .store_data import StoreData


class Batch(NamedTuple):
    """tokens: (B, L) uint8. lengths: (B,) int64, real bases. labels: (B,) int64."""

    tokens: Tensor
    lengths: Tensor
    labels: Tensor

    def part(self, start: int, stop: int) -> Batch:
        """Positions start to stop of every row."""
        lengths = (self.lengths - start).clamp(0, stop - start)
        return Batch(self.tokens[:, start:stop], lengths, self.labels)


class Packed(NamedTuple):
    """tokens: (B, L) uint8. segments: (B, L) int32. labels: (B, S) int64, -1 for none."""

    tokens: Tensor
    segments: Tensor
    labels: Tensor


def to_tensors(batch: WindowBatch | PackedBatch) -> Batch | Packed:
    """The same memory as tensors."""
    kind = Packed if isinstance(batch, PackedBatch) else Batch
    return kind(*(torch.from_numpy(np.ascontiguousarray(part)) for part in batch))


class SpeciesData(StoreData):
    """Windows with their classes, all classes alike.

    Args:
        store: from `mambabio.store.build_store`.
        options: how to cut it.
        seed: of the training windows.
    """

    def __init__(self, store: SequenceStore, options: DataOptions, seed: int) -> None:
        validation = None
        if store.select("val"):
            validation = tile_windows(store, "val", options.window).spread(options.val_windows)
        super().__init__(
            store, options, TrainingWindows, validation, to_tensors, seed=seed, balanced=True
        )
