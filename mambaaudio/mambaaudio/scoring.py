"""Score sound files with a model: bits per sample, by file and by second, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mambaaudio import waveform
from mambaaudio.bits import Scorer
from mambaaudio.codes import code
from mambaaudio.model_config import WaveformConfig
from mambacore.errors import DataError

Progress = Callable[[float, float], None]
"""Called with seconds done and seconds in all."""

# A gain by file lifts its loudest sample to here, as in `mambaaudio.corpus`.
_PEAK = 0.98


@dataclass(frozen=True, eq=False)
class FileScore:
    """path: the file, and the channel where it was one of each: ``a.wav#left``. seconds, samples:
    at the model's rate. bits: per sample, over all. floor: the same of a floor, where one was
    asked for. by_second: (ceil(seconds),) bits per sample of each second, the last one's of what
    there is."""

    path: str
    seconds: float
    samples: int
    bits: float
    floor: float | None
    by_second: NDArray[np.float64]


def coded_blocks(
    path: str | Path,
    config: WaveformConfig,
    *,
    channel: waveform.Channel | int = "mix",
    block_frames: int = waveform.BLOCK_FRAMES,
) -> Iterator[NDArray[np.uint8]]:
    """A file's codes as a model hears them: its channel, rate, 16 bits and gain, in blocks.

    Raises:
        DataError: an unreadable file, or a sample that is not finite.
    """
    gain, coder = _gain(path, config, channel), code(config.code)
    done = 0
    for block in waveform.stream(
        path, rate=config.rate, channel=channel, block_frames=block_frames
    ):
        if not np.isfinite(block).all():
            place = done + int(np.flatnonzero(~np.isfinite(block))[0])
            raise DataError(f"{path}: sample {place} is not a finite number")
        done += len(block)
        whole = np.clip(np.rint(block * np.float32(32768)), -32768, 32767)
        scaled = whole * np.float32(gain / 32768)
        yield coder.encode(torch.from_numpy(scaled)).numpy().astype(np.uint8)


def _gain(path: str | Path, config: WaveformConfig, channel: waveform.Channel | int) -> float:
    if config.trained_on.get("gain") != "file":
        return config.gain
    peak = 0.0
    for block in waveform.stream(path, rate=config.rate, channel=channel):
        peak = max(peak, float(np.abs(block).max()))
    return _PEAK / peak if peak else 1.0


def score_file(
    scorer: Scorer,
    path: str | Path,
    *,
    label: str | None = None,
    speaker: str | None = None,
    channel: waveform.Channel | int = "mix",
    voice: str = "",
    floor: bool = False,
    progress: Progress | None = None,
) -> FileScore:
    """Bits per sample of one file, whatever its length.

    Args:
        scorer: of a `WaveformModel`.
        path: any file that libsndfile reads; resampled to the model's rate.
        label, speaker: names that the model knows; None leaves them open.
        channel: what becomes of several channels; see `mambaaudio.waveform.stream`.
        voice: name of the channel, to be noted; `mambaaudio.waveform.voices` lists a file's.
        floor: also what adaptive linear prediction costs on the same codes.
        progress: called with seconds done and in all.

    Raises:
        DataError: an unreadable or empty file, a sample that is not finite.
        UsageError: an unknown label or speaker.
    """
    from mambaaudio.floors import LinearPrediction

    config: WaveformConfig = scorer.model.config
    feed = scorer.stream(config.label_id(label), config.speaker_id(speaker))
    beside = LinearPrediction.for_rate(config.code, config.rate).stream() if floor else None
    total = waveform.probe(path).seconds
    sums: list[float] = []
    samples, floor_bits = 0, 0.0
    for codes in coded_blocks(path, config, channel=channel):
        cost = feed(codes)
        if beside is not None:
            floor_bits += float(beside(codes).sum())
        second = (samples + np.arange(len(cost))) // config.rate
        sums += [0.0] * (int(second[-1]) + 1 - len(sums))
        first = int(second[0])
        for place, value in enumerate(np.bincount(second - first, cost)):
            sums[first + place] += float(value)
        samples += len(cost)
        if progress is not None:
            progress(samples / config.rate, total)
    if not samples:
        raise DataError(f"{path}: it holds no samples to score")
    counts = np.full(len(sums), config.rate)
    counts[-1] = samples - config.rate * (len(sums) - 1)
    return FileScore(
        path=waveform.named(str(Path(path)), voice),
        seconds=samples / config.rate,
        samples=samples,
        bits=sum(sums) / samples,
        floor=floor_bits / samples if floor else None,
        by_second=np.array(sums) / counts,
    )
