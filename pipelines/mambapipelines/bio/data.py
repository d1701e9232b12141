"""The species classifier's data: a store, random training windows, tiled validation windows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mambabio.packing import PackedBatch, PackedWindows
from mambabio.store import SequenceStore
from mambabio.windows import MINIMUM_WINDOW, TrainingWindows, WindowBatch, WindowSet, tile_windows

from ..loading import BatchMaker, ValidationBatches, loader
from ..schedule import length_stages
from ..training import StepData
from .options import DataOptions


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


def to_tensors(batch: WindowBatch) -> Batch:
    """The same memory as tensors."""
    return Batch(*(torch.from_numpy(np.ascontiguousarray(part)) for part in batch))


def packing_remark(windows: PackedWindows, window: int) -> str:
    """How much padding packing spares, for the log."""
    alone = windows.unpacked_padding(window)
    packed = windows.batch(0, 0, 1, 64, window).padding
    return (
        f"packing: {packed:.1%} of the positions are padding; with a row a record, "
        f"{alone:.1%} would be"
    )


class TrainingBatches:
    """``(number, window, batch size) -> batch`` of one rank; pickles to workers."""

    def __init__(
        self, windows: TrainingWindows | PackedWindows, rank: int, world_size: int
    ) -> None:
        self._windows = windows
        self._rank = rank
        self._world_size = world_size

    def __call__(self, number: int, window: int, batch: int) -> Batch | Packed:
        made = self._windows.batch(number, self._rank, self._world_size, batch, window)
        if isinstance(made, PackedBatch):
            return Packed(*(torch.from_numpy(part) for part in made))
        return to_tensors(made)


class SpeciesData(StepData):
    """Windows of a store for Lightning.

    Args:
        store: from `mambabio.store.build_store`.
        options: how to cut it.
        seed: of the training windows.
    """

    unit = "bases"
    remark = ""

    def __init__(self, store: SequenceStore, options: DataOptions, seed: int) -> None:
        super().__init__()
        self._options = options
        self.workers = options.num_workers
        first = max(MINIMUM_WINDOW, min(options.first_window, options.window))
        self.stages = length_stages(options.window, options.tokens, first, options.length_warmup)
        self._windows: TrainingWindows | PackedWindows
        if options.packing:
            self._windows = PackedWindows(
                store, seed=seed, reverse_complement=options.reverse_complement
            )
            self.remark = packing_remark(self._windows, options.window)
        else:
            self._windows = TrainingWindows(
                store, seed=seed, reverse_complement=options.reverse_complement
            )
            for stage in reversed(self.stages):  # a window longer than the records fails now
                self._windows.positions(stage.window)
        self.validation = self._validation(store)

    def _validation(self, store: SequenceStore) -> WindowSet | None:
        if not store.select("val"):
            return None
        tiles = tile_windows(store, "val", self._options.window)
        most = self._options.val_windows
        if len(tiles) <= most:
            return tiles
        # Evenly over the windows of each class, so that a rare class keeps its share.
        chosen = np.linspace(0, len(tiles) - 1, most).round().astype(np.int64)
        return tiles.take(np.unique(chosen))

    def batch_maker(self) -> BatchMaker:
        """Training batches of this rank."""
        rank, world = self._place()
        return TrainingBatches(self._windows, rank, world)

    def val_dataloader(self) -> DataLoader | list:
        """Validation batches of this rank; none without validation records."""
        if self.validation is None:
            return []
        rank, world = self._place()
        batch = max(1, self._options.tokens // self._options.window)
        return loader(
            ValidationBatches(self.validation, rank, world, batch, to_tensors), pin=self.on_gpu
        )
