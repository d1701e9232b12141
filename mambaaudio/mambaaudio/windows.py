"""Windows of coded sound: drawn at random for training, tiled in order for scoring.

A recording becomes a sequence of symbols in one of two ways (`Layout`):

- a clip is read as a whole: its samples, 0.1 s of digital silence, the end event. The tail trains,
  so that generation learns to stop, but does not count in reported bits;
- a long recording is read in stretches of one length, without a tail.

A row that begins at a recording's first sample begins as generation does. Any other one is a
stretch whose past the model is not told: its first symbols, too, are predicted from the start
input, and cost more bits than they would with the past known.

Shapes: B rows a batch, L symbols a row, padded at the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mambaaudio.corpus import Corpus, Recording
from mambaaudio.sheet import Split
from mambacore.draws import below, draws
from mambacore.errors import DataError, UsageError

MINIMUM_WINDOW = 16
SILENCE_SECONDS = 0.1
_ROUND = 64
# Batches of clips have widths that fall by this factor: few shapes, and little padding.
_LADDER = 0.8
_GOLDEN = (5**0.5 - 1) / 2
_TABLES = 64
_Count = TypeVar("_Count", int, NDArray[np.int64])


class AudioBatch(NamedTuple):
    """codes: (B, L) uint8 symbols (int16 with an end event). mask: (B, L) bool, what the loss
    counts: all but padding. counted: (B, L) bool, real samples only, what reported bits count.
    label, speaker: (B,) int64 numbers, 0 for none."""

    codes: NDArray[Any]
    mask: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    label: NDArray[np.int64]
    speaker: NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """How recordings become sequences of symbols.

    code: name of the code (`mambaaudio.codes`). clips: whole recordings with a tail of silence
    and the end event. silence: samples of that silence.
    """

    code: str = "mulaw8"
    clips: bool = False
    silence: int = 0

    @staticmethod
    def choose(
        corpus: Corpus, window: int, *, code: str = "mulaw8", clips: bool | None = None
    ) -> Layout:
        """The layout of a corpus: clips if asked for, or, where nothing is asked, if training
        recordings have labels and nine in ten of them fit into a window with their tail."""
        silence = round(SILENCE_SECONDS * corpus.rate)
        if clips is None:
            heard = corpus.select("train") or corpus.recordings
            short = sum(r.length + silence <= window for r in heard)
            clips = any(r.label_id for r in heard) and short >= 0.9 * len(heard)
        return Layout(code, clips, silence if clips else 0)

    @cached_property
    def per_sample(self) -> int:
        """Symbols a sample."""
        from mambaaudio.codes import code

        return code(self.code).symbols_per_sample

    @cached_property
    def end(self) -> int:
        """The end event's symbol, used by clips."""
        from mambaaudio.codes import code

        return code(self.code).symbols

    @property
    def dtype(self) -> type[np.uint8] | type[np.int16]:
        """Of a batch's codes."""
        return np.int16 if self.clips else np.uint8

    def symbols(self, samples: _Count) -> _Count:
        """Length of the sequence that a recording of so many samples becomes."""
        return (samples + self.silence) * self.per_sample + self.clips


class Coder:
    """16-bit samples to symbols, by a table of all 65,536 values where gains are few."""

    def __init__(self, corpus: Corpus, layout: Layout) -> None:
        self._layout = layout
        self._few = len({recording.gain for recording in corpus.recordings}) <= _TABLES
        self._tables: dict[float, NDArray[np.uint8]] = {}

    def encode(self, samples: NDArray[np.int16], gain: float) -> NDArray[np.uint8]:
        """(n,) samples, multiplied by the gain and clamped, to (n x symbols a sample,)."""
        if not self._few:
            return self._direct(samples, gain)
        table = self._tables.get(gain)
        if table is None:
            every = np.arange(-32768, 32768, dtype=np.int32).astype(np.int16)
            # Row v is the code of the sample whose bits, read without a sign, are v.
            table = self._direct(np.roll(every, 32768), gain)
            table = self._tables[gain] = table.reshape(1 << 16, self._layout.per_sample)
        return table[np.ascontiguousarray(samples).view(np.uint16)].reshape(-1)

    def _direct(self, samples: NDArray[np.int16], gain: float) -> NDArray[np.uint8]:
        import torch

        from mambaaudio.codes import code

        waveform = samples.astype(np.float32) * np.float32(gain / 32768)
        return code(self._layout.code).encode(torch.from_numpy(waveform)).numpy().astype(np.uint8)


_Piece = tuple[Recording, int, int]
"""A recording, the first sample of a row in it, and the row's symbols."""


class _Reader:
    """Rows of symbols of a corpus."""

    def __init__(self, corpus: Corpus, layout: Layout) -> None:
        self.corpus, self.layout = corpus, layout
        self._coder = Coder(corpus, layout)

    def __getstate__(self) -> dict[str, Any]:
        return {"corpus": self.corpus, "layout": self.layout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def rows(self, pieces: Sequence[_Piece], width: int) -> AudioBatch:
        """A batch of (recording, first sample, symbols), each padded to `width` symbols."""
        layout, each = self.layout, self.layout.per_sample
        shape = (len(pieces), width)
        codes = np.zeros(shape, layout.dtype)
        mask, counted = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        for row, (recording, start, symbols) in enumerate(pieces):
            mask[row, :symbols] = True
            real = max(0, min(symbols, (recording.length - start) * each))
            samples = self.corpus.samples(recording, min(start, recording.length), -(-real // each))
            codes[row, :real] = self._coder.encode(samples, recording.gain)[:real]
            counted[row, :real] = True
            if symbols > real:
                passed = max(start - recording.length, 0) * each
                codes[row, real:symbols] = self._tail[passed : passed + symbols - real]
        label = np.array([recording.label_id for recording, _, _ in pieces], np.int64)
        speaker = np.array([recording.speaker_id for recording, _, _ in pieces], np.int64)
        return AudioBatch(codes, mask, counted, label, speaker)

    @cached_property
    def _tail(self) -> NDArray[np.int16]:
        """What follows a clip: silence and the end event."""
        silence = self._coder.encode(np.zeros(self.layout.silence, np.int16), 1.0)
        return np.append(silence.astype(np.int16), np.int16(self.layout.end))

    def width(self, longest: int, window: int) -> int:
        """Width of a batch: its longest row, rounded up so that few widths occur."""
        step = _ROUND * self.layout.per_sample
        # A whole clip's end event is one symbol more than its samples.
        limit = max(window * self.layout.per_sample, longest)
        return min(-(-longest // step) * step, limit)


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

    Args:
        corpus: from `build_corpus`; its ``train`` recordings are used.
        layout: from `Layout.choose`.
        seed: any integer.

    Example:
        >>> from mambaaudio._examples import example_corpus
        >>> corpus = example_corpus()
        >>> windows = TrainingWindows(corpus, Layout(), seed=1)
        >>> batch = windows.batch(step=0, rank=0, world_size=1, batch_size=3, window=64)
        >>> batch.codes.shape, batch.codes.dtype, bool(batch.counted.all())
        ((3, 64), dtype('uint8'), True)
    """

    def __init__(self, corpus: Corpus, layout: Layout, *, seed: int) -> None:
        self._reader = _Reader(corpus, layout)
        self.seed = seed
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
        longest = max(symbols for _, _, symbols in pieces)
        return self._reader.rows(pieces, self._reader.width(longest, window))

    def _stretches(self, step: int, rank: int, batch_size: int, window: int) -> list[_Piece]:
        numbers = draws(self.seed, step, rank * batch_size, batch_size)
        classes = self._draw_classes(numbers[:, 0])
        first = self._first[classes]
        before = self._ends[first] - self._lengths[first]
        samples = self._ends[first + self._many[classes] - 1] - before
        place = before + below(numbers[:, 1], samples)
        chosen = np.searchsorted(self._ends, place, side="right")
        lengths = self._lengths[chosen]
        start = below(numbers[:, 2], lengths + window) - window
        start = np.clip(start, 0, np.maximum(lengths - window, 0))
        symbols = np.minimum(lengths, window) * self._reader.layout.per_sample
        return self._pieces(np.stack([chosen, start, symbols], 1))

    def _clips(self, place: int, batch_size: int, window: int) -> tuple[list[_Piece], int]:
        """The clips of a batch, by its place among those of all ranks, and its width."""
        if self._shelves is None or self._shelves[0] != (batch_size, window):
            self._shelves = ((batch_size, window), self._sort(batch_size, window))
        shelves = self._shelves[1]
        # Steps of the golden ratio visit the shelves far more evenly than chance would.
        first = draws(self.seed, 0, 1 << 40, 1)[0, 0] * 2.0**-64
        shelf = int(_place(shelves.odds, np.array([(first + place * _GOLDEN) % 1.0]))[0])
        numbers = draws(self.seed, place, 0, shelves.rows[shelf])
        chosen = shelves.clips[shelf][_place(shelves.weights[shelf], _unit(numbers[:, 1]))]
        # One that is too long gives as much as fits, the tail and its end event at the last.
        layout = self._reader.layout
        limit, symbols = window * layout.per_sample, layout.symbols(self._lengths[chosen])
        over = -(-(symbols - limit) // layout.per_sample)
        over[symbols <= limit + layout.clips] = 0
        start = below(numbers[:, 2], over + 1)
        rest = np.minimum(limit, symbols - start * layout.per_sample)
        rows = np.stack([chosen, start, np.where(over > 0, rest, symbols)], 1)
        return self._pieces(rows), shelves.widths[shelf]

    def _sort(self, batch_size: int, window: int) -> _Shelves:
        """The clips by the width of the batches that they go into."""
        layout = self._reader.layout
        limit = window * layout.per_sample
        symbols = layout.symbols(self._lengths)
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

    def _pieces(self, rows: NDArray[np.int64]) -> list[_Piece]:
        return [
            (self._recordings[place], start, symbols) for place, start, symbols in rows.tolist()
        ]

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


def _unit(numbers: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Random 64-bit numbers as numbers from 0 to 1."""
    return (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _place(sums: NDArray[np.float64], unit: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where numbers from 0 to 1 fall among the steps of a running sum."""
    return np.minimum(np.searchsorted(sums, unit * sums[-1], side="right"), len(sums) - 1)


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
    def _reader(self) -> _Reader:
        return _Reader(self.corpus, self.layout)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_reader", None)
        return state

    def batch(self, indices: Sequence[int] | NDArray[np.int64] | slice) -> AudioBatch:
        """The rows at some places of the list, padded at the right to the longest."""
        chosen = np.arange(len(self))[indices]
        pieces = [
            (self.corpus.recordings[record], int(start), int(symbols))
            for record, start, symbols in zip(
                self.record[chosen], self.start[chosen], self.symbols[chosen], strict=True
            )
        ]
        return self._reader.rows(pieces, max(symbols for _, _, symbols in pieces))

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
