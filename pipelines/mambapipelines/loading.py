"""Batches by number: item `step` of the data is the whole batch of that step on this rank.

So the position in the data is the step number, and a resumed training, any number of workers and
any prefetching see exactly the batches that an uninterrupted one sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from .interrupt import ignore_in_worker
from .schedule import Pace, Stage

PREFETCH = 2

BatchMaker = Callable[[int, int, int], Any]
"""``(step, window, batch size) -> batch``, a pure function; picklable when there are workers."""


class WindowBatches:
    """``(number, window, batch size) -> batch`` of one rank; pickles to workers.

    windows: has ``batch(number, rank, world size, batch size, window)``, of which `convert`, a
    function of a module, makes tensors.
    """

    def __init__(
        self, windows: Any, convert: Callable[[Any], Any], rank: int, world_size: int
    ) -> None:
        self._windows = windows
        self._convert = convert
        self._rank = rank
        self._world_size = world_size

    def __call__(self, number: int, window: int, batch: int) -> Any:
        made = self._windows.batch(number, self._rank, self._world_size, batch, window)
        return self._convert(made)


class StepSampler(Sampler):
    """Yields ``(batch number, window, batch size)`` for ever, from batch number `start` on."""

    def __init__(
        self, start: int, accumulate: int, pace: Pace, stage: Callable[[float], Stage]
    ) -> None:
        self._start = start
        self._accumulate = accumulate
        self._pace = pace
        self._stage = stage

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        number = self._start
        while True:
            stage = self._stage(self._pace.fraction(number // self._accumulate))
            yield number, stage.window, stage.batch
            number += 1


class StepDataset(Dataset):
    """A map from the sampler's keys to batches."""

    def __init__(self, make: BatchMaker) -> None:
        self._make = make

    def __getitem__(self, key: tuple[int, int, int]) -> Any:
        return self._make(*key)


def _unchanged(batch: Any) -> Any:
    return batch


def loader(
    dataset: Dataset,
    sampler: Sampler | None = None,
    *,
    workers: int = 0,
    pin: bool = False,
) -> DataLoader:
    """A DataLoader whose items are whole batches and which never draws from the global RNG.

    Workers ignore Ctrl-C and SIGTERM: they end with the main process.
    """
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=ignore_in_worker if workers else None,
        # DataLoader seeds its workers from a generator; with its own one, loading and validating
        # leave the model's random numbers alone.
        generator=torch.Generator(),
    )


def lag(workers: int, accumulate: int) -> int:
    """Steps by which batches may be prepared ahead: the workers' queues and Lightning's own."""
    return (workers * PREFETCH + 2) // accumulate + 2


def places_of(count: int, rank: int, world_size: int, batch: int) -> list[NDArray[np.int64]]:
    """Every `world_size`-th of so many rows, from the rank-th on, in batches of one size.

    >>> [places.tolist() for places in places_of(8, 1, 2, 3)]
    [[1, 3, 5], [7]]
    """
    mine = np.arange(rank, count, world_size)
    return [mine[first : first + batch] for first in range(0, len(mine), batch)]


class ValidationBatches(Dataset):
    """Batches of rows, the same each time.

    tiles: has ``batch(places)``, of which `convert` makes tensors. places: of each batch's rows.
    """

    def __init__(
        self, tiles: Any, places: Sequence[NDArray[np.int64]], convert: Callable[[Any], Any]
    ) -> None:
        self._tiles = tiles
        self._places = places
        self._convert = convert

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._convert(self._tiles.batch(self._places[index]))

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))
