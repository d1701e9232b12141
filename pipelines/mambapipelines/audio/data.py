"""A waveform model's data: a corpus, random training rows, fixed validation rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mambaaudio.corpus import Corpus
from mambaaudio.rows import AudioBatch, Layout
from mambaaudio.windows import TrainingWindows, WindowSet, tile_windows

from ..loading import BatchMaker, ValidationBatches, WindowBatches, loader
from ..schedule import length_stages
from ..training import StepData
from .options import AudioDataOptions


class Batch(NamedTuple):
    """codes: (B, L) uint8 or int16. mask: (B, L) bool, what the loss counts. counted: (B, L)
    bool, real samples, what reported bits count. label, speaker: (B,) int64, 0 for none."""

    codes: Tensor
    mask: Tensor
    counted: Tensor
    label: Tensor
    speaker: Tensor


def to_tensors(batch: AudioBatch) -> Batch:
    """The same memory as tensors."""
    return Batch(*(torch.from_numpy(np.ascontiguousarray(part)) for part in batch))


class WaveformData(StepData):
    """Windows of a corpus for Lightning.

    Args:
        corpus: from `mambaaudio.corpus.build_corpus`.
        layout: clips or stretches, and in which code.
        options: how to cut it.
        seed: of the training windows.
    """

    unit = "samples"

    def __init__(
        self, corpus: Corpus, layout: Layout, options: AudioDataOptions, seed: int
    ) -> None:
        super().__init__()
        self._options = options
        self.layout = layout
        self.workers = options.num_workers
        first = min(options.first_window, options.window)
        self.stages = length_stages(options.window, options.tokens, first, options.length_warmup)
        self._windows = TrainingWindows(corpus, layout, seed=seed, speed=options.speed)
        self.validation: WindowSet | None = None
        if corpus.select("val"):
            tiles = tile_windows(corpus, "val", options.window, layout)
            self.validation = tiles.spread(options.val_windows)

    def batch_maker(self) -> BatchMaker:
        """Training batches of this rank."""
        return WindowBatches(self._windows, to_tensors, *self._place())

    def val_dataloader(self) -> DataLoader | list:
        """Validation batches of this rank; none without validation recordings."""
        if self.validation is None:
            return []
        rank, world = self._place()
        symbols = max(self._options.tokens, self._options.window) * self.layout.per_sample
        places = self.validation.packed(symbols)[rank::world]  # rows of like length go together
        return loader(ValidationBatches(self.validation, places, to_tensors), pin=self.on_gpu)
