"""Windows of sequence: drawn at random for training, tiled without overlap for scoring.

Shapes: B windows a batch, L bases a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mambabio.alphabet import COMPLEMENT, PAD
from mambabio.sheet import Split
from mambabio.store import SequenceStore, StoredRecord
from mambacore.draws import below, draws
from mambacore.errors import DataError, UsageError

MINIMUM_WINDOW = 64
BLOCK = 50_000


class WindowBatch(NamedTuple):
    """tokens: (B, L) uint8, padding at the right. lengths: (B,) int64 real bases.
    labels: (B,) int64 class ids."""

    tokens: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    labels: NDArray[np.int64]


class _Positions(NamedTuple):
    """Where windows of one length may start, all classes in a row."""

    ends: NDArray[np.int64]  # (records,) cumulated numbers of start positions
    record: NDArray[np.int64]  # (records,) places in the store's records
    first: NDArray[np.int64]  # (classes,) where a class's positions begin
    many: NDArray[np.int64]  # (classes,) how many it has


class TrainingWindows:
    """Random training windows, a pure function of (seed, step, row).

    Each window draws its class uniformly, then a start uniformly among all the class's training
    positions (so a record counts by its number of positions), then a strand. On circular records
    a window may start anywhere and goes on at the origin. A window never joins two records.

    ``batch(step, rank, world_size, batch_size, window)`` is row ``rank * batch_size`` on of the
    step's global batch: the numbers of row r in step s are Philox's at the counter (r, s) under
    the seed as key, so nothing has to be remembered for a resume, and one rank of 32 windows sees
    what two ranks of 16 see.

    Args:
        store: from `build_store`; its ``train`` records are used.
        seed: any integer.
        reverse_complement: give half of the windows as their reverse complement.
        balanced: False draws among the positions of all classes alike, and takes no notice of
            a class without a record that is long enough.

    Example:
        >>> from mambabio._examples import example_store
        >>> windows = TrainingWindows(example_store(), seed=1)
        >>> batch = windows.batch(step=0, rank=0, world_size=1, batch_size=3, window=64)
        >>> batch.tokens.shape, batch.lengths.tolist()
        ((3, 64), [64, 64, 64])
    """

    def __init__(
        self,
        store: SequenceStore,
        *,
        seed: int,
        reverse_complement: bool = True,
        balanced: bool = True,
    ) -> None:
        self.store = store
        self.seed = seed
        self.reverse_complement = reverse_complement
        self.balanced = balanced
        self._positions: dict[int, _Positions] = {}

    def batch(
        self, step: int, rank: int, world_size: int, batch_size: int, window: int
    ) -> WindowBatch:
        """The windows of one rank in one step.

        Args:
            step: 0 and up. rank: 0 to world_size - 1. batch_size: windows for this rank.
            window: bases, at least 64.

        Raises:
            UsageError: a number out of range.
            DataError: a class has no training record as long as the window.
        """
        if step < 0 or batch_size < 1 or not 0 <= rank < world_size:
            raise UsageError(
                f"step {step}, rank {rank} of {world_size}, batch size {batch_size}: step starts "
                "at 0, rank is below the world size and a batch has at least one window"
            )
        positions = self.positions(window)
        numbers = draws(self.seed, step, rank * batch_size, batch_size)
        labels = below(numbers[:, 0], np.full(batch_size, len(positions.many), np.int64))
        place = positions.first[labels] + below(numbers[:, 1], positions.many[labels])
        row = np.searchsorted(positions.ends, place, side="right")
        from_end = positions.ends[row] - place  # 1 at the last position
        flips = (numbers[:, 2] >> np.uint64(63)).astype(bool) & self.reverse_complement
        tokens = np.empty((batch_size, window), np.uint8)
        ids, records = self.store.all_ids, self.store.records
        chosen = zip(positions.record[row].tolist(), from_end.tolist(), strict=True)
        for out, (index, back) in zip(tokens, chosen, strict=True):
            record = records[index]
            last = record.length if record.circular else record.length - window + 1
            start = last - back
            head = min(window, record.length - start)
            begin = record.offset + start
            out[:head] = ids[begin : begin + head]
            if head < window:
                out[head:] = ids[record.offset : record.offset + window - head]
        if flips.any():
            tokens[flips] = COMPLEMENT[tokens[flips][:, ::-1]]
        labels = np.array([records[index].label_id for index in positions.record[row]], np.int64)
        return WindowBatch(tokens, np.full(batch_size, window, np.int64), labels)

    def check(self, window: int) -> None:
        """Raise `DataError` unless there are windows of that length."""
        self.positions(window)

    def positions(self, window: int) -> _Positions:
        """Start positions for a window length; made once and kept."""
        if window not in self._positions:
            self._positions[window] = _start_positions(self.store, window, self.balanced)
        return self._positions[window]


def _start_positions(store: SequenceStore, window: int, balanced: bool) -> _Positions:
    _check_window(window)
    by_class: list[list[tuple[int, int]]] = [[] for _ in (store.labels if balanced else "a")]
    longest: dict[int, StoredRecord] = {}
    for record in store.select("train"):
        best = longest.setdefault(record.label_id, record)
        if record.length > best.length:
            longest[record.label_id] = record
        if record.length >= window:
            count = record.length if record.circular else record.length - window + 1
            by_class[record.label_id if balanced else 0].append((record.index, count))
    if not longest:
        raise DataError("there are no training records: the sheet needs rows for training")
    if not any(by_class):
        most = max(longest.values(), key=lambda record: record.length)
        raise DataError(
            f"a window of {window:,} bases is longer than every training record; the longest is "
            f"{most.name!r} with {most.length:,}. Ask for a window of at most that"
        )
    for label_id, records in enumerate(by_class):
        if not records:
            most = longest.get(label_id)
            has = f"its longest, {most.name!r}, has {most.length:,}" if most else "it has none"
            raise DataError(
                f"label {store.labels[label_id]!r} has no training record of {window:,} bases; "
                f"{has}. Ask for a shorter window, or leave the label out"
            )
    flat = [pair for records in by_class for pair in records]
    counts = np.array([count for _, count in flat], np.int64)
    per_class = np.array([sum(c for _, c in records) for records in by_class], np.int64)
    return _Positions(
        ends=np.cumsum(counts),
        record=np.array([index for index, _ in flat], np.int64),
        first=np.cumsum(per_class) - per_class,
        many=per_class,
    )


def _check_window(window: int) -> None:
    if window < MINIMUM_WINDOW:
        raise UsageError(f"window is {window}; give at least {MINIMUM_WINDOW} bases")


@dataclass(frozen=True, eq=False)
class WindowSet:
    """A fixed list of windows, in the order of records and positions.

    store: where the bases are. window: bases a row. record: (n,) places in the store's records.
    start: (n,) first base in the record. length: (n,) real bases, below ``window`` only for
    records that are shorter. labels: (n,) class ids. group: (n,) units that an interval should
    resample: genomes, or 50 kb blocks of long records. dropped: reason to number of records.
    """

    store: SequenceStore
    window: int
    record: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    labels: NDArray[np.int64]
    group: NDArray[np.int64]
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.record)

    def batch(self, indices: Sequence[int] | NDArray[np.int64] | slice) -> WindowBatch:
        """The windows at some places of the list, padded at the right."""
        chosen = np.arange(len(self))[indices]
        lengths = self.length[chosen]
        tokens = np.full((len(chosen), self.window), PAD, np.uint8)
        ids, records = self.store.all_ids, self.store.records
        rows = zip(self.record[chosen], self.start[chosen], lengths, strict=True)
        for out, (index, start, length) in zip(tokens, rows, strict=True):
            begin = records[index].offset + start
            out[:length] = ids[begin : begin + length]
        return WindowBatch(tokens, lengths, self.labels[chosen])

    def spread(self, most: int) -> WindowSet:
        """At most so many of them, evenly spread, so that a rare class keeps its share."""
        if len(self) <= most:
            return self
        return self.take(np.linspace(0, len(self) - 1, most).round().astype(np.int64))

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> WindowSet:
        """The same with some of the windows only."""
        chosen = np.asarray(indices)
        return WindowSet(
            store=self.store,
            window=self.window,
            record=self.record[chosen],
            start=self.start[chosen],
            length=self.length[chosen],
            labels=self.labels[chosen],
            group=self.group[chosen],
            dropped=self.dropped,
        )


def tile_windows(
    store: SequenceStore,
    split: Split,
    window: int,
    *,
    minimum: int = MINIMUM_WINDOW,
    block: int = BLOCK,
) -> WindowSet:
    """Cut every record of a split into windows that do not overlap, from its start on.

    The rest at a record's end is left out. A record shorter than the window but of at least
    ``minimum`` bases is one short window; a shorter one is dropped and counted.

    Windows that belong together share a group: all of a record, or, where the record (with all
    its pieces) has at least four blocks, all that start in the same block of it. A window longer
    than a block is a group of its own.

    Args:
        store: from `build_store`. split: whose records. window: bases, at least 64.
        minimum: shortest record to use. block: bases of a block.

    Raises:
        UsageError: the window is too short.
        DataError: the split has no records, or none long enough.

    Example:
        >>> from mambabio._examples import example_store
        >>> tiles = tile_windows(example_store(), "train", 100)
        >>> tiles.start[:3].tolist(), tiles.batch([0, 1]).tokens.shape
        ([0, 100, 200], (2, 100))
    """
    _check_window(window)
    records = store.select(split)
    if not records:
        raise DataError(f"there are no {split} records: the sheet needs rows with split {split}")
    extent: dict[tuple[int, int, str], tuple[int, int]] = {}
    for record in records:
        low, high = extent.get(_unit(record), (record.start, 0))
        end = record.start + record.length
        extent[_unit(record)] = min(low, record.start), max(high, end)
    groups: dict[tuple[tuple[int, int, str], int], int] = {}
    columns: list[NDArray[np.int64]] = []
    short = 0
    for record in records:
        if record.length < min(minimum, window):
            short += 1
            continue
        count = max(record.length // window, 1)
        start = np.arange(count, dtype=np.int64) * window
        blocks = np.zeros(count, np.int64)
        low, high = extent[_unit(record)]
        if high - low >= 4 * block:
            blocks = (record.start + start) // block
        group = [groups.setdefault((_unit(record), b), len(groups)) for b in blocks.tolist()]
        length = np.full(count, min(window, record.length), np.int64)
        same = np.ones(count, np.int64)
        columns.append(
            np.stack([same * record.index, start, length, same * record.label_id, np.array(group)])
        )
    if not columns:
        longest = max(records, key=lambda record: record.length)
        raise DataError(
            f"no {split} record has {minimum} bases; the longest is {longest.name!r} with "
            f"{longest.length}"
        )
    dropped = {f"{split} record under {minimum} bases": short} if short else {}
    index, starts, lengths, labels, groups_of = np.concatenate(columns, axis=1)
    return WindowSet(store, window, index, starts, lengths, labels, groups_of, dropped)


def _unit(record: StoredRecord) -> tuple[int, int, str]:
    """What tells a record of the input: its pieces have it in common."""
    return record.source, record.row, record.name
