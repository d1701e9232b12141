"""Sound files in: what libsndfile reads (WAV, FLAC, OGG, MP3), in blocks, resampled as a stream.

Nothing is loaded whole unless `read` is asked to: an hour at any rate passes through in blocks.
Samples are float32, full scale = 1.0, shape (frames,) after the channels were chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from mambacore.errors import DataError, UsageError

Channel = Literal["mix", "left", "right"]
Channels = Literal["mix", "left", "right", "each"]
"""What can be asked of a set of recordings: also every channel as a recording of its own."""
BLOCK_FRAMES = 1 << 16


@dataclass(frozen=True)
class AudioInfo:
    """What a header says: rate in Hz, length in frames (one sample of every channel)."""

    path: Path
    rate: int
    channels: int
    frames: int
    format: str
    subtype: str

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def _open(path: str | Path) -> soundfile.SoundFile:
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such sound file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    try:
        return soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        raise DataError(
            f"{path}: not a sound file that libsndfile reads ({error.error_string}); "
            "convert it to WAV or FLAC"
        ) from error


def probe(path: str | Path) -> AudioInfo:
    """Read the header alone.

    Raises DataError, naming the file, when it is absent, empty or of an unknown format.
    """
    with _open(path) as file:
        return AudioInfo(
            Path(path), file.samplerate, file.channels, file.frames, file.format, file.subtype
        )


def voices(channels: int, chosen: Channels) -> list[tuple[str, Channel | int]]:
    """The recordings that a file of so many channels becomes: name, and `channel` of `stream`.

    The name is empty where the file is one recording; `named` appends it to the file's.

    >>> voices(2, "each"), voices(1, "each"), voices(2, "left")
    ([('left', 0), ('right', 1)], [('', 'mix')], [('', 'left')])
    """
    if chosen != "each":
        return [("", chosen)]
    if channels == 1:
        return [("", "mix")]
    names = ["left", "right"] if channels == 2 else [str(i + 1) for i in range(channels)]
    return [(name, place) for place, name in enumerate(names)]


def named(file: str, voice: str) -> str:
    """What messages and tables call a recording.

    >>> named("a.wav", "left"), named("a.wav", "")
    ('a.wav#left', 'a.wav')
    """
    return f"{file}#{voice}" if voice else file


def _choose(block: NDArray[np.float32], channel: Channel | int) -> NDArray[np.float32]:
    """(frames, channels) to (frames,): the mean, or one of them. Mono stays as it is."""
    if block.shape[1] == 1:
        return block[:, 0]
    if channel == "mix":
        return block.mean(axis=1, dtype=np.float32)
    places = {"left": 0, "right": 1}
    return block[:, places[channel] if isinstance(channel, str) else channel]


def stream(
    path: str | Path,
    *,
    rate: int | None = None,
    channel: Channel | int = "mix",
    start: int = 0,
    frames: int | None = None,
    block_frames: int = BLOCK_FRAMES,
) -> Iterator[NDArray[np.float32]]:
    """Yield the recording in blocks, in constant memory.

    Args:
        path: any file that libsndfile reads.
        rate: sampling rate of the blocks in Hz; the file's own when None. Resampling is soxr's
            high quality, as one stream: block borders cannot be heard.
        channel: what becomes of several channels: their mean, the first or the second, or the
            one of that number, from 0.
        start: first frame, at the file's rate.
        frames: how many frames from there, at the file's rate; to the end when None.
        block_frames: frames read at a time.

    Yields:
        float32 (n,), n > 0.

    Raises:
        DataError: the file cannot be read, or breaks off (a frame number is named).
        UsageError: an unknown channel, a start past the end.
    """
    if isinstance(channel, str) and channel not in get_args(Channel):
        raise UsageError(f"channel {channel!r}: choose from {', '.join(get_args(Channel))}")
    if rate is not None and rate <= 0:
        raise UsageError(f"rate is {rate} Hz; it must be positive")
    with _open(path) as file:
        if not 0 <= start <= file.frames:
            raise UsageError(f"{path}: start {start} lies outside its {file.frames} frames")
        left = file.frames - start if frames is None else min(frames, file.frames - start)
        if start:
            file.seek(start)
        resampler = None
        if rate is not None and rate != file.samplerate:
            resampler = soxr.ResampleStream(file.samplerate, rate, 1, dtype="float32")
        position = start
        while left > 0:
            try:
                block = file.read(min(block_frames, left), dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise DataError(
                    f"{path}: damaged after frame {position} ({error.error_string})"
                ) from error
            if not len(block):
                raise DataError(
                    f"{path}: ends after frame {position}, {left} frames before its header says"
                )
            left -= len(block)
            position += len(block)
            mono = _choose(np.asarray(block, np.float32), channel)
            if resampler is not None:
                mono = resampler.resample_chunk(mono, last=left == 0)
            if len(mono):
                yield np.ascontiguousarray(mono, dtype=np.float32)


def read(
    path: str | Path,
    *,
    rate: int | None = None,
    channel: Channel | int = "mix",
    start: int = 0,
    frames: int | None = None,
) -> NDArray[np.float32]:
    """The blocks of `stream` as one array (frames,)."""
    blocks = list(stream(path, rate=rate, channel=channel, start=start, frames=frames))
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)
