"""What a model hears before it goes on: a stretch of a recording, at its rate and gain, coded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import get_args

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambaaudio import waveform
from mambaaudio.codes import code
from mambaaudio.model_config import WaveformConfig
from mambacore.errors import DataError, UsageError

Notice = Callable[[str], None]
Source = str | PathLike[str] | NDArray[np.floating] | Tensor


@dataclass(frozen=True)
class Prompt:
    """codes: (1, L) int64; waveform: (n,) float32, what the codes stand for, gain undone. Of
    several rows that hear each their own: (rows, L) and (rows, n)."""

    codes: Tensor
    waveform: NDArray[np.float32]


def load_prompt(
    source: Source,
    config: WaveformConfig,
    *,
    rate: int | None = None,
    start: float = 0.0,
    seconds: float | None = None,
    channel: waveform.Channel = "mix",
    notice: Notice,
) -> Prompt:
    """Read, cut, resample and code a prompt.

    Args:
        source: a sound file, or samples (n,) with full scale 1.
        config: the model's.
        rate: of given samples, in Hz; the model's by default. A file says its own.
        start, seconds: the stretch; to the end by default.
        channel: what becomes of several channels: "mix", "left" or "right".
        notice: told when the prompt is resampled, mixed or clipped.

    Raises:
        DataError: an unreadable, empty or non-finite prompt. UsageError: a stretch that is not in
        the recording, a rate below 1, another channel.
    """
    if channel not in get_args(waveform.Channel):
        raise UsageError(
            f"channel {channel!r}: a prompt is one recording; choose "
            f"{', '.join(get_args(waveform.Channel))}"
        )
    if not start >= 0 or (seconds is not None and not seconds > 0):
        raise UsageError(
            f"the prompt starts at {start} s and lasts {seconds} s; give a start of at least 0 and "
            "a length above 0"
        )
    if isinstance(source, str | PathLike):
        name = str(source)
        info = waveform.probe(name)
        rate, frames = info.rate, info.frames
        if info.channels > 1:
            notice(f"{name}: of its {info.channels} channels the model hears {_heard(channel)}")
        first, count = _stretch(name, rate, frames, start, seconds)
        samples = waveform.read(name, rate=config.rate, channel=channel, start=first, frames=count)
    else:
        name, rate = "the prompt", config.rate if rate is None else rate
        given = source.detach().cpu().numpy() if isinstance(source, Tensor) else np.asarray(source)
        if given.ndim != 1 or not np.issubdtype(given.dtype, np.floating):
            raise UsageError(
                f"the prompt must be floating-point samples (n,), not {given.shape} of "
                f"{given.dtype}; choose one channel, and divide integers by their full scale"
            )
        if rate < 1:
            raise UsageError(f"the prompt's rate is {rate} Hz; it must be at least 1")
        first, count = _stretch(name, rate, len(given), start, seconds)
        samples = np.asarray(given[first : first + count], np.float32)
        if rate != config.rate:
            samples = soxr.resample(samples, rate, config.rate)
    if rate != config.rate:
        notice(f"{name}: resampled from {rate} Hz to the model's {config.rate} Hz")
    if not len(samples):
        raise DataError(f"{name}: the chosen stretch has no samples")
    if not np.isfinite(samples).all():
        position = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise DataError(f"{name}: sample {position} is not a finite number")
    scaled = torch.from_numpy(np.ascontiguousarray(samples, np.float32)) * config.gain
    clipped = int((scaled.abs() > 1).sum())
    if clipped:
        notice(f"{name}: {clipped} samples beyond full scale were clipped (gain {config.gain:g})")
    coder = code(config.code)
    codes = coder.encode(scaled)
    return Prompt(codes[None], (coder.decode(codes) / config.gain).numpy())


def side_by_side(prompts: Sequence[Prompt]) -> Prompt:
    """A prompt a row.

    Raises:
        UsageError: they differ in length, so that rows would not be in step.
    """
    lengths = sorted({len(prompt.waveform) for prompt in prompts})
    if len(lengths) > 1:
        raise UsageError(
            f"the prompts of a batch have {lengths[0]:,} to {lengths[-1]:,} samples at the "
            "model's rate; cut them to one length (prompt_seconds), or go on from them one by one"
        )
    return Prompt(
        torch.cat([prompt.codes for prompt in prompts]),
        np.stack([prompt.waveform for prompt in prompts]),
    )


def _stretch(
    name: str, rate: int, frames: int, start: float, seconds: float | None
) -> tuple[int, int]:
    """First frame and number of frames."""
    if frames == 0:
        raise DataError(f"{name}: it has no samples")
    first = round(start * rate)
    if first >= frames:
        raise UsageError(f"{name}: starts at {start:g} s, but it lasts {frames / rate:.3f} s")
    return first, min(frames - first, frames if seconds is None else max(1, round(seconds * rate)))


def _heard(channel: str) -> str:
    return "the mean" if channel == "mix" else f"the {channel} one"
