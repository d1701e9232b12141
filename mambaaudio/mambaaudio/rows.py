"""How recordings become rows of symbols: whole clips with a tail, or stretches of one length.

- A clip is read as a whole: its samples, 0.1 s of digital silence, the end event. The tail trains,
  so that generation learns to stop, but does not count in reported bits.
- A long recording is read in stretches of one length, without a tail.

Which rows are read is the business of `mambaaudio.windows`.

Shapes: B rows a batch, L symbols a row, padded at the right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import soxr
from numpy.typing import NDArray

from mambaaudio.corpus import Corpus, Recording

SILENCE_SECONDS = 0.1
_ROUND = 64
# Samples around a stretch at another speed, read from the nearest sample of the recording on: up to
# half of one off. At speeds of few twentieths that is none, if the stretch begins on a sample too.
_MARGIN = 100
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


class Piece(NamedTuple):
    """A recording, the first sample of a row in it, and the row's symbols; played at `speed`,
    which also counts the samples: at speed 2 a recording has half as many."""

    recording: Recording
    start: int
    symbols: int
    speed: float = 1.0

    @property
    def length(self) -> int:
        """Samples of the recording as it is played."""
        return int(played(self.recording.length, self.speed))


def played(samples: _Count, speed: Any) -> _Count:
    """How many samples become of so many at a speed, or at one each."""
    return np.ceil(samples / speed).astype(np.int64)


class RowReader:
    """Rows of symbols of a corpus."""

    def __init__(self, corpus: Corpus, layout: Layout) -> None:
        self.corpus, self.layout = corpus, layout
        self._coder = Coder(corpus, layout)

    def __getstate__(self) -> dict[str, Any]:
        return {"corpus": self.corpus, "layout": self.layout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def rows(self, pieces: Sequence[Piece], width: int) -> AudioBatch:
        """A batch of pieces, each padded to `width` symbols."""
        layout, each = self.layout, self.layout.per_sample
        shape = (len(pieces), width)
        codes = np.zeros(shape, layout.dtype)
        mask, counted = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        for row, piece in enumerate(pieces):
            start, symbols = piece.start, piece.symbols
            mask[row, :symbols] = True
            real = max(0, min(symbols, (piece.length - start) * each))
            samples = self._samples(piece, -(-real // each))
            codes[row, :real] = self._coder.encode(samples, piece.recording.gain)[:real]
            counted[row, :real] = True
            if symbols > real:
                passed = max(start - piece.length, 0) * each
                codes[row, real:symbols] = self._tail[passed : passed + symbols - real]
        label = np.array([piece.recording.label_id for piece in pieces], np.int64)
        speaker = np.array([piece.recording.speaker_id for piece in pieces], np.int64)
        return AudioBatch(codes, mask, counted, label, speaker)

    def _samples(self, piece: Piece, count: int) -> NDArray[np.int16]:
        """The first `count` samples of a piece, at its speed."""
        recording, speed = piece.recording, piece.speed
        if speed == 1:
            return self.corpus.samples(recording, min(piece.start, recording.length), count)
        # Some more on both sides, so that a stretch's edges sound as its middle.
        before = min(piece.start, _MARGIN)
        first = min(round((piece.start - before) * speed), recording.length)
        wanted = min(math.ceil((before + count + _MARGIN) * speed), recording.length - first)
        wave = self.corpus.samples(recording, first, wanted).astype(np.float32)
        wave = soxr.resample(wave, speed, 1.0)[before : before + count]
        wave = np.pad(wave, (0, count - len(wave)))
        return np.clip(np.rint(wave), -32768, 32767).astype(np.int16)

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
