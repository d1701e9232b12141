"""Sound files out: exact 16-bit samples, any length, clipping counted, nothing half-written."""

from __future__ import annotations

import struct
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self, get_args

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from mambacore.cache import atomic_path
from mambacore.errors import DataError, UsageError

Subtype = Literal["PCM_16", "PCM_24", "FLOAT"]
_FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG"}
# A WAV's sizes are 32-bit; RF64 (EBU Tech 3306) is the same file with 64-bit ones.
_RF64_ABOVE = 2**32 - 2**20
_BLOCK = 1 << 16


def to_int16(samples: NDArray[np.floating]) -> tuple[NDArray[np.int16], int]:
    """rint(32768 x) clipped to 16 bits, and how many samples were clipped.

    libsndfile floors floats and writes NaN as full scale: so integers are handed over, and a NaN
    raises DataError.
    """
    if np.isnan(samples).any():
        position = int(np.flatnonzero(np.isnan(samples))[0])
        raise DataError(f"sample {position} is NaN and cannot be written")
    scaled = np.rint(np.asarray(samples, np.float64) * 32768)
    clipped = int(((scaled < -32768) | (scaled > 32767)).sum())
    return np.clip(scaled, -32768, 32767).astype(np.int16), clipped


def _wav_header(rate: int) -> bytes:
    """A 16-bit mono WAV header for a stream of unknown length (sizes at their maximum)."""
    size = 0xFFFFFFFF
    parts = b"RIFF" + struct.pack("<I", size) + b"WAVEfmt "
    parts += struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * 2, 2, 16)
    return parts + b"data" + struct.pack("<I", size - 36)


class WaveformWriter:
    """Write float samples block by block: `with WaveformWriter(path, rate) as w: w.write(x)`.

    Args:
        path: its suffix names the format (.wav, .flac, .ogg); "-" streams 16-bit WAV to stdout.
        rate: of the samples that `write` is given, in Hz.
        output_rate: rate of the file; resampled as a stream when it differs.
        subtype: PCM_16 (default), PCM_24 or FLOAT; .ogg is Vorbis whatever it says.
        expected_frames: when known, lets a WAV above 4 GiB begin as RF64.

    The file is written beside and renamed when the block ends without an exception, so a crash
    leaves an older file whole (`mambacore.cache.atomic_path`). `clipped` counts the samples that
    were out of range, `frames` those written.
    """

    def __init__(
        self,
        path: str | Path,
        rate: int,
        *,
        output_rate: int | None = None,
        subtype: Subtype = "PCM_16",
        expected_frames: int | None = None,
        stdout: BinaryIO | None = None,
    ) -> None:
        self.path = str(path)
        self.clipped = 0
        self.frames = 0
        self._subtype = subtype
        self._rate = output_rate or rate
        self._resampler = None
        if self._rate != rate:
            self._resampler = soxr.ResampleStream(rate, self._rate, 1, dtype="float32")
        self._pipe: BinaryIO | None = None
        self._file: soundfile.SoundFile | None = None
        self._place = ExitStack()
        if subtype not in get_args(Subtype):
            raise UsageError(f"subtype {subtype!r}: choose from {', '.join(get_args(Subtype))}")
        if self.path == "-":
            pipe = self._pipe = stdout or sys.stdout.buffer
            pipe.write(_wav_header(self._rate))
            return
        self._open_beside(Path(path), expected_frames)

    def _open_beside(self, path: Path, expected_frames: int | None) -> None:
        form = _FORMATS.get(path.suffix.lower())
        if form is None:
            raise UsageError(
                f"{path}: the suffix names the format; known are {', '.join(_FORMATS)}"
            )
        width = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}[self._subtype]
        if form == "WAV" and (expected_frames or 0) * width > _RF64_ABOVE:
            form = "RF64"
        if form == "FLAC" and self._subtype == "FLOAT":
            raise UsageError(f"{path}: FLAC holds PCM_16 or PCM_24, not FLOAT; use .wav")
        subtype = "VORBIS" if form == "OGG" else self._subtype
        with ExitStack() as place:
            beside = place.enter_context(atomic_path(path))
            self._file = soundfile.SoundFile(
                beside, "w", samplerate=self._rate, channels=1, subtype=subtype, format=form
            )
            self._place = place.pop_all()

    def write(self, samples: NDArray[np.floating]) -> None:
        """Append samples (n,), full scale 1.0. DataError at a NaN."""
        samples = np.asarray(samples, np.float32)
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        self._put(samples)

    def _put(self, samples: NDArray[np.float32]) -> None:
        # In blocks: one write of half an hour crashes libsndfile's Vorbis encoder.
        for first in range(0, len(samples), _BLOCK):
            self._put_block(samples[first : first + _BLOCK])

    def _put_block(self, block: NDArray[np.float32]) -> None:
        whole, clipped = to_int16(block)
        self.clipped += clipped
        self.frames += len(block)
        try:
            if self._pipe is not None:
                self._pipe.write(whole.astype("<i2").tobytes())
            elif self._file is not None:
                exact = self._subtype == "PCM_16"
                self._file.write(whole if exact else np.clip(block, -1.0, 1.0))
        except (OSError, soundfile.LibsndfileError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise DataError(f"{self.path}: writing failed ({error})") from error

    def close(self) -> None:
        """Flush the resampler, close, and move the file into its place."""
        with self._place:
            if self._resampler is not None:
                self._put(self._resampler.resample_chunk(np.empty(0, np.float32), last=True))
                self._resampler = None
            if self._pipe is not None:
                self._pipe.flush()
            if self._file is not None:
                self._file.close()
                self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
            return
        if self._file is not None:
            with suppress(Exception):
                self._file.close()
        self._place.__exit__(kind, error, trace)
