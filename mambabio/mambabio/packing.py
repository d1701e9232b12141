"""Records of many lengths in rows of one length, without padding and without mixing.

A packed row holds stretches of several records one after the other, and a segment number for each
base; the state is reset where the number changes. Shapes: B rows, L bases a row, S segments a row
at most.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mambabio.alphabet import COMPLEMENT, PAD
from mambabio.language import LanguageBatch, scored
from mambabio.store import SequenceStore, StoredRecord
from mambabio.windows import MINIMUM_WINDOW
from mambacore.draws import unit
from mambacore.errors import DataError, UsageError


class PackedBatch(NamedTuple):
    """tokens: (B, L) uint8, `PAD` where nothing fitted. segments: (B, L) int32, 0, 1, ... along a
    row; padding has a number of its own. labels: (B, S) int64 class ids, -1 where a row has fewer
    segments."""

    tokens: NDArray[np.uint8]
    segments: NDArray[np.int32]
    labels: NDArray[np.int64]

    @property
    def padding(self) -> float:
        """Share of the positions that hold nothing."""
        return float((self.tokens == PAD).mean())

    def for_language(self) -> LanguageBatch:
        """With the base after each as target; the last of a segment has none."""
        targets = np.full_like(self.tokens, PAD)
        same = self.segments[:, 1:] == self.segments[:, :-1]
        targets[:, :-1] = np.where(same, scored(self.tokens[:, 1:]), np.uint8(PAD))
        return LanguageBatch(self.tokens, targets, self.segments)


def pack(lengths: Sequence[int] | NDArray[np.int64], width: int) -> list[list[int]]:
    """Deal items out to rows of `width`: which items each row holds, none cut.

    The longest first, each to the row with the most room. A row is at least half full but for the
    last ones.

    Args:
        lengths: of the items, each from 1 to `width`.
        width: of a row.

    Raises:
        UsageError: an item is longer than a row, or empty.

    >>> pack([5, 3, 8, 2, 2], 10)
    [[2, 3], [0, 1, 4]]
    """
    sizes = np.asarray(lengths, np.int64)
    if sizes.size and (sizes.min() < 1 or sizes.max() > width):
        raise UsageError(f"items of {sizes.min()} to {sizes.max()} do not fit rows of {width}")
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (minus the room left, row)
    for item in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[item])
        if room and -room[0][0] >= size:
            left, row = heapq.heappop(room)
            rows[row].append(item)
            heapq.heappush(room, (left + size, row))
        else:
            rows.append([item])
            heapq.heappush(room, (size - width, len(rows) - 1))
    return rows


class PackedWindows:
    """Random packed training rows, a pure function of (seed, step, row).

    A row is filled from the left: a record is drawn and put in whole, or, where it is longer than
    the room that is left, a random stretch of it that fills the room. So every row is full but for
    fewer than `minimum` bases. Records are drawn in proportion to ``max(1, length / L)``: each
    base of the training records is then read about equally often, whatever its record's length.
    With `balanced` a class is drawn first, all classes alike.

    Args:
        store: from `mambabio.store.build_store`; its ``train`` records are used.
        seed: any integer.
        reverse_complement: give half of the stretches as their reverse complement.
        balanced: draw the class first.
        minimum: shortest stretch; shorter records are left out.

    Raises:
        DataError: no record, or with `balanced` a class without one, has `minimum` bases.

    >>> from mambabio._examples import example_store
    >>> rows = PackedWindows(example_store(), seed=1).batch(0, 0, 1, batch_size=2, window=1500)
    >>> rows.segments[0, [0, 999, 1000, 1499]].tolist(), rows.padding
    ([0, 0, 1, 1], 0.0)
    """

    def __init__(
        self,
        store: SequenceStore,
        *,
        seed: int,
        reverse_complement: bool = True,
        balanced: bool = True,
        minimum: int = MINIMUM_WINDOW,
    ) -> None:
        self.store = store
        self.seed = seed
        self.reverse_complement = reverse_complement
        self.minimum = minimum
        records = [record for record in store.select("train") if record.length >= minimum]
        names = store.labels if balanced else ("",)
        self._classes = [
            [r for r in records if not balanced or r.label_id == number]
            for number in range(len(names))
        ]
        for name, own in zip(names, self._classes, strict=True):
            if not own:
                which = f"label {name!r} has" if balanced else "there is"
                raise DataError(
                    f"{which} no training record of at least {minimum} bases to pack into rows"
                )
        self._weights: dict[int, list[NDArray[np.float64]]] = {}

    def batch(
        self, step: int, rank: int, world_size: int, batch_size: int, window: int
    ) -> PackedBatch:
        """The rows of one rank in one step; rows of `window` bases.

        Raises:
            UsageError: a number out of range.
        """
        if step < 0 or batch_size < 1 or not 0 <= rank < world_size or window < self.minimum:
            raise UsageError(
                f"step {step}, rank {rank} of {world_size}, {batch_size} rows of {window} bases: "
                f"step starts at 0, rank is below the world size, a batch has a row or more and a "
                f"row at least {self.minimum} bases"
            )
        tokens = np.full((batch_size, window), PAD, np.uint8)
        segments = np.empty((batch_size, window), np.int32)
        labels: list[list[int]] = []
        for row in range(batch_size):
            number = rank * batch_size + row
            labels.append(self._fill(step, number, tokens[row], segments[row]))
        table = np.full((batch_size, max(map(len, labels))), -1, np.int64)
        for row, own in enumerate(labels):
            table[row, : len(own)] = own
        return PackedBatch(tokens, segments, table)

    def unpacked_padding(self, window: int) -> float:
        """The share of padding if each of the same records had a row of its own."""
        kept = [
            float(weights @ np.array([min(r.length, window) for r in own])) / weights.sum()
            for own, weights in zip(self._classes, self._shares(window), strict=True)
        ]
        return 1.0 - sum(kept) / len(kept) / window

    def _fill(
        self, step: int, row: int, tokens: NDArray[np.uint8], segments: NDArray[np.int32]
    ) -> list[int]:
        window = len(tokens)
        draws = _draws(self.seed, step, row, window // self.minimum)
        cumulated = self._cumulated(window)
        labels: list[int] = []
        at = 0
        for class_draw, record_draw, place_draw, strand_draw in draws:
            own = min(int(class_draw * len(self._classes)), len(self._classes) - 1)
            place = int(np.searchsorted(cumulated[own], record_draw * cumulated[own][-1], "right"))
            record = self._classes[own][min(place, len(self._classes[own]) - 1)]
            end = at + min(record.length, window - at)
            piece = self._stretch(record, end - at, place_draw)
            if self.reverse_complement and strand_draw < 0.5:
                piece = COMPLEMENT[piece[::-1]]
            tokens[at:end] = piece
            segments[at:end] = len(labels)
            labels.append(record.label_id)
            at = end
            if window - at < self.minimum:
                break
        segments[at:] = len(labels)
        return labels

    def _stretch(self, record: StoredRecord, length: int, draw: float) -> NDArray[np.uint8]:
        places = record.length if record.circular else record.length - length + 1
        return self.store.ids(record, min(int(draw * places), places - 1), length)

    def _shares(self, window: int) -> list[NDArray[np.float64]]:
        return [np.array([max(1.0, r.length / window) for r in own]) for own in self._classes]

    def _cumulated(self, window: int) -> list[NDArray[np.float64]]:
        if window not in self._weights:
            self._weights[window] = [np.cumsum(weights) for weights in self._shares(window)]
        return self._weights[window]


def _draws(seed: int, step: int, row: int, most: int) -> NDArray[np.float64]:
    """(most, 4) numbers in [0, 1); counters that `TrainingWindows` never uses."""
    generator = np.random.Philox(key=seed % (1 << 128), counter=[0, step, row, 1])
    raw = generator.random_raw(4 * most).reshape(most, 4)
    return unit(raw)
