"""Windows of coded sound: drawn at random for training, tiled in order for scoring.

`mambaaudio.rows` says how a recording is read; here is said from where to where. A row that
begins at a recording's first sample begins as generation does. Any other one is a stretch whose
past the model is not told: its first symbols, too, are predicted from the start input, and cost
more bits than they would with the past known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mambaaudio.corpus import Corpus
from mambaaudio.rows import AudioBatch, Layout, Piece, RowReader, played
from mambaaudio.sheet import Split
from mambacore.draws import below, draws, unit
from mambacore.errors import DataError, UsageError

MINIMUM_WINDOW = 16
# Batches of clips have widths that fall by this factor: few shapes, and little padding.
_LADDER = 0.8
_GOLDEN = (5**0.5 - 1) / 2


class TrainingWindows:
    """Random training rows, a pure function of (seed, step, rank, row).

    Each row draws its label uniformly (recordings without a label count as one label more).

    - Clips: a clip uniformly among the label's. One that is longer than the window gives a random
      stretch of it. A batch's clips are of like length: it draws one of a few widths, as often as
      makes every clip's share the same, and clips of that width alone. A batch of short clips has
      more rows, one of long clips fewer, and about ``batch_size * window`` samples both, padding
      included; so only a few shapes of batches occur.
    - Stretches: a recording in proportion to its samples, then a start. Starts before the first
      and after the last possible one are moved there, so a recording's edges are heard as often
      as its middle, and some rows begin where the recording begins. A recording shorter than
      the window is one row, padded.

    - Speed: with `speed` above 0, half of the rows are played faster or slower, by factors up to
      ``1 + speed``, uniformly in their logarithm (Ko et al. 2015, Audio augmentation for speech
      recognition).

    Args:
        corpus: from `build_corpus`; its ``train`` recordings are used.
        layout: from `Layout.choose`.
        seed: any integer.
        speed: 0 leaves every row as it is.

    Example:
        >>> from mambaaudio._examples import example_corpus
        >>> corpus = example_corpus()
        >>> windows = TrainingWindows(corpus, Layout(), seed=1)
        >>> batch = windows.batch(step=0, rank=0, world_size=1, batch_size=3, window=64)
        >>> batch.codes.shape, batch.codes.dtype, bool(batch.counted.all())
        ((3, 64), dtype('uint8'), True)
    """

    def __init__(self, corpus: Corpus, layout: Layout, *, seed: int, speed: float = 0.0) -> None:
        self._reader = RowReader(corpus, layout)
        self.seed, self.speed = seed, speed
        self._recordings = sorted(corpus.select("train"), key=lambda r: r.label_id)
        if not self._recordings:
            raise DataError("there are no training recordings: the sheet needs rows for training")
        self._lengths = np.array([r.length for r in self._recordings], np.int64)
        # Of each label, in the order of the recordings: how many it has, and where they begin.
        labels = np.array([r.label_id for r in self._recordings])
        self._many = np.unique(labels, return_counts=True)[1]
        self._first = np.cumsum(self._many) - self._many
        self._ends = np.cumsum(self._lengths)
        self._shelves: tuple[tuple[int, int], _Shelves] | None = None

    def batch(
        self, step: int, rank: int, world_size: int, batch_size: int, window: int
    ) -> AudioBatch:
        """The rows of one rank in one step.

        Args:
            step: 0 and up. rank: 0 to world_size - 1. batch_size: rows of full windows for this
            rank; with clips, of as many samples. window: samples, at least 16.

        Raises:
            UsageError: a number out of range.
        """
        if step < 0 or batch_size < 1 or not 0 <= rank < world_size:
            raise UsageError(
                f"step {step}, rank {rank} of {world_size}, batch size {batch_size}: step starts "
                "at 0, rank is below the world size and a batch has at least one row"
            )
        if window < MINIMUM_WINDOW:
            raise UsageError(f"window is {window}; give at least {MINIMUM_WINDOW} samples")
        if self._reader.layout.clips:
            place = step * world_size + rank
            return self._reader.rows(*self._clips(place, batch_size, window))
        pieces = self._stretches(step, rank, batch_size, window)
        longest = max(piece.symbols for piece in pieces)
        return self._reader.rows(pieces, self._reader.width(longest, window))

    def _stretches(self, step: int, rank: int, batch_size: int, window: int) -> list[Piece]:
        numbers = draws(self.seed, step, rank * batch_size, batch_size)
        classes = self._draw_classes(numbers[:, 0])
        first = self._first[classes]
        before = self._ends[first] - self._lengths[first]
        samples = self._ends[first + self._many[classes] - 1] - before
        place = before + below(numbers[:, 1], samples)
        chosen = np.searchsorted(self._ends, place, side="right")
        speeds = self._speeds(numbers[:, 3])
        lengths = played(self._lengths[chosen], speeds)
        start = below(numbers[:, 2], lengths + window) - window
        start = np.clip(start, 0, np.maximum(lengths - window, 0))
        symbols = np.minimum(lengths, window) * self._reader.layout.per_sample
        return self._pieces(chosen, start, symbols, speeds)

    def _clips(self, place: int, batch_size: int, window: int) -> tuple[list[Piece], int]:
        """The clips of a batch, by its place among those of all ranks, and its width."""
        if self._shelves is None or self._shelves[0] != (batch_size, window):
            self._shelves = ((batch_size, window), self._sort(batch_size, window))
        shelves = self._shelves[1]
        # Steps of the golden ratio visit the shelves far more evenly than chance would.
        first = draws(self.seed, 0, 1 << 40, 1)[0, 0] * 2.0**-64
        shelf = int(_place(shelves.odds, np.array([(first + place * _GOLDEN) % 1.0]))[0])
        numbers = draws(self.seed, place, 0, shelves.rows[shelf])
        chosen = shelves.clips[shelf][_place(shelves.weights[shelf], unit(numbers[:, 1]))]
        # One that is too long gives as much as fits, the tail and its end event at the last.
        layout = self._reader.layout
        speeds = self._speeds(numbers[:, 3])
        symbols = layout.symbols(played(self._lengths[chosen], speeds))
        limit = window * layout.per_sample
        over = -(-(symbols - limit) // layout.per_sample)
        over[symbols <= limit + layout.clips] = 0
        start = below(numbers[:, 2], over + 1)
        rest = np.minimum(limit, symbols - start * layout.per_sample)
        symbols = np.where(over > 0, rest, symbols)
        return self._pieces(chosen, start, symbols, speeds), shelves.widths[shelf]

    def _sort(self, batch_size: int, window: int) -> _Shelves:
        """The clips by the width of the batches that they go into."""
        layout = self._reader.layout
        limit = window * layout.per_sample
        symbols = layout.symbols(played(self._lengths, 1 / (1 + self.speed)))  # at the slowest
        symbols = np.where(symbols <= limit + layout.clips, symbols, limit)
        widths = [self._reader.width(int(symbols.max()), window)]
        while widths[-1] > symbols.min():
            narrower = self._reader.width(int(_LADDER * widths[-1]), window)
            widths.append(min(narrower, widths[-1] - 1))
        widths = np.array(widths[::-1])
        shelf = np.searchsorted(widths, symbols)
        used = np.unique(shelf)
        weight = np.repeat(1.0 / self._many, self._many)
        clips = tuple(np.flatnonzero(shelf == place) for place in used)
        rows = np.maximum(1, batch_size * limit // widths[used])
        odds = np.array([weight[mine].sum() for mine in clips]) / rows
        return _Shelves(
            tuple(widths[used].tolist()),
            tuple(rows.tolist()),
            np.cumsum(odds),
            clips,
            tuple(np.cumsum(weight[mine]) for mine in clips),
        )

    def _pieces(self, chosen: NDArray[np.int64], *parts: NDArray[Any]) -> list[Piece]:
        columns = (part.tolist() for part in parts)
        recordings = [self._recordings[place] for place in chosen]
        return [Piece(*row) for row in zip(recordings, *columns, strict=True)]

    def _speeds(self, numbers: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Half of them 1, the others spread around it."""
        place = 4 * unit(numbers) - 3
        return np.where(place < -1, 1.0, (1 + self.speed) ** np.maximum(place, -1))

    def _draw_classes(self, numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
        return below(numbers, np.full(len(numbers), len(self._many), np.int64))


class _Shelves(NamedTuple):
    """Clips by width. widths, rows: shape of a width's batches. odds: running sums of how often
    each is drawn. clips, weights: its clips, and running sums of theirs."""

    widths: tuple[int, ...]
    rows: tuple[int, ...]
    odds: NDArray[np.float64]
    clips: tuple[NDArray[np.int64], ...]
    weights: tuple[NDArray[np.float64], ...]


def _place(sums: NDArray[np.float64], numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where numbers from 0 to 1 fall among the steps of a running sum."""
    return np.minimum(np.searchsorted(sums, numbers * sums[-1], side="right"), len(sums) - 1)


@dataclass(frozen=True, eq=False)
class WindowSet:
    """A fixed list of rows, in the order of recordings and positions.

    corpus, layout: where the sound is and how it is read. record: (n,) places in the corpus'
    recordings. start: (n,) first sample. symbols: (n,) length of the row.
    """

    corpus: Corpus
    layout: Layout
    record: NDArray[np.int64]
    start: NDArray[np.int64]
    symbols: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.record)

    @cached_property
    def _reader(self) -> RowReader:
        return RowReader(self.corpus, self.layout)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_reader", None)
        return state

    def batch(self, indices: Sequence[int] | NDArray[np.int64] | slice) -> AudioBatch:
        """The rows at some places of the list, padded at the right to the longest."""
        chosen = np.arange(len(self))[indices]
        pieces = [
            Piece(self.corpus.recordings[record], int(start), int(symbols))
            for record, start, symbols in zip(
                self.record[chosen], self.start[chosen], self.symbols[chosen], strict=True
            )
        ]
        return self._reader.rows(pieces, max(piece.symbols for piece in pieces))

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> WindowSet:
        """The same with some of the rows only."""
        chosen = np.asarray(indices)
        return WindowSet(
            self.corpus, self.layout, self.record[chosen], self.start[chosen], self.symbols[chosen]
        )

    def spread(self, most: int) -> WindowSet:
        """At most so many rows, evenly over the list."""
        if len(self) <= most:
            return self
        return self.take(np.unique(np.linspace(0, len(self) - 1, most).round().astype(np.int64)))

    def packed(self, symbols: int) -> list[NDArray[np.int64]]:
        """Places of the list in batches of rows of like length, each of at most `symbols` with
        its padding (or of one row)."""
        batches: list[list[int]] = []
        for place in np.argsort(self.symbols, kind="stable").tolist():
            width = int(self.symbols[place])  # the longest so far
            if batches and width * (len(batches[-1]) + 1) <= symbols:
                batches[-1].append(place)
            else:
                batches.append([place])
        return [np.array(batch, np.int64) for batch in batches]


def tile_windows(
    corpus: Corpus, split: Split | Literal["all"], window: int, layout: Layout
) -> WindowSet:
    """Cut every recording of a split into rows that do not overlap, from its start on.

    Clips are cut only where they are longer than the window, and to their very end. Of a longer
    recording the rest that fills no window is left out; one that is shorter is one row.

    Raises:
        UsageError: the window is too short.
        DataError: the split has no recordings.

    Example:
        >>> from mambaaudio._examples import example_corpus
        >>> tiles = tile_windows(example_corpus(), "train", 1000, Layout())
        >>> tiles.start[:2].tolist(), tiles.batch([0, 1]).codes.shape
        ([0, 1000], (2, 1000))
    """
    if window < MINIMUM_WINDOW:
        raise UsageError(f"window is {window}; give at least {MINIMUM_WINDOW} samples")
    recordings = corpus.recordings if split == "all" else corpus.select(split)
    if not recordings:
        raise DataError(f"there are no {split} recordings: the sheet needs rows of that split")
    rows: list[tuple[int, int, int]] = []
    limit = window * layout.per_sample
    for recording in recordings:
        total = layout.symbols(recording.length)
        if total <= limit + layout.clips:
            rows.append((recording.index, 0, total))
        else:
            count = -(-total // limit) if layout.clips else total // limit
            rows += [
                (recording.index, i * window, min(limit, total - i * limit)) for i in range(count)
            ]
    record, start, symbols = np.array(rows, np.int64).T
    return WindowSet(corpus, layout, record, start, symbols)
