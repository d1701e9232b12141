"""The language model's data: random training windows of a store, tiled validation windows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mambabio.language import LanguageBatch, LanguageTiles, LanguageWindows
from mambabio.packing import PackedBatch, PackedWindows
from mambabio.store import SequenceStore
from mambabio.windows import MINIMUM_WINDOW

from ..bio.data import packing_remark
from ..loading import BatchMaker, ValidationBatches, loader
from ..schedule import length_stages
from ..training import StepData
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


def to_tensors(batch: LanguageBatch) -> Batch:
    """The same memory as tensors."""
    tokens, targets = (torch.from_numpy(np.ascontiguousarray(part)) for part in batch[:2])
    segments = None if batch.segments is None else torch.from_numpy(batch.segments)
    return Batch(tokens, targets, segments)


class TrainingBatches:
    """``(number, window, batch size) -> batch`` of one rank; pickles to workers."""

    def __init__(
        self, windows: LanguageWindows | PackedWindows, rank: int, world_size: int
    ) -> None:
        self._windows = windows
        self._rank = rank
        self._world_size = world_size

    def __call__(self, number: int, window: int, batch: int) -> Batch:
        made = self._windows.batch(number, self._rank, self._world_size, batch, window)
        return to_tensors(made.for_language() if isinstance(made, PackedBatch) else made)


class LanguageSequences(StepData):
    """Windows of a store for Lightning.

    Args:
        store: from `mambabio.store.build_store`.
        options: how to cut it.
        seed: of the training windows.
    """

    unit = "bases"
    remark = ""

    def __init__(self, store: SequenceStore, options: LanguageData, seed: int) -> None:
        super().__init__()
        self._options = options
        self.workers = options.num_workers
        first = max(MINIMUM_WINDOW, min(options.first_window, options.window))
        self.stages = length_stages(options.window, options.tokens, first, options.length_warmup)
        draw = {
            "seed": seed,
            "reverse_complement": options.reverse_complement,
            "balanced": options.balanced,
        }
        self._windows: LanguageWindows | PackedWindows
        if options.packing:
            self._windows = PackedWindows(store, **draw)
            self.remark = packing_remark(self._windows, options.window)
        else:
            self._windows = LanguageWindows(store, **draw)
            for stage in reversed(self.stages):  # a window longer than the records fails now
                self._windows.check(stage.window)
        self.validation: LanguageTiles | None = None
        if store.select("val"):
            self.validation = LanguageTiles(store, "val", options.window, most=options.val_windows)

    def batch_maker(self) -> BatchMaker:
        """Training batches of this rank."""
        return TrainingBatches(self._windows, *self._place())

    def val_dataloader(self) -> DataLoader | list:
        """Validation batches of this rank; none without validation records."""
        if self.validation is None:
            return []
        batch = max(1, self._options.tokens // self._options.window)
        dataset = ValidationBatches(self.validation, *self._place(), batch, to_tensors)
        return loader(dataset, pin=self.on_gpu)
