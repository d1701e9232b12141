"""What a piece of generated music looks like in numbers, beside a real one.

Level, noisiness, events and harmony: a drone, a loop, runaway noise and silence each leave the
range that real pieces have in one of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambaaudio.mel import power_spectrum
from mambacore.errors import DataError

N_FFT = 2048
_ONSET_FFT = 1024
_ONSET_HOP_SECONDS = 0.016
_ONSET_APART_SECONDS = 0.06
_LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class MusicFigures:
    """Figures of one recording.

    rms: (whole seconds,) of full scale. relative_rms: the same over the prompt's RMS (over the
    recording's own without one). flatness: spectral flatness, power, Hann windows of 2,048:
    geometric over arithmetic mean, averaged over frames; 0 for a tone, .56 for white noise.
    onsets: per 10 s. chroma_entropy: bits, of the energy's distribution over the 12 pitch
    classes; 0 for a single note, 3.58 for all alike.
    """

    seconds: float
    rms: NDArray[np.float64]
    relative_rms: NDArray[np.float64]
    flatness: float
    onsets: float
    chroma_entropy: float

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        del values["rms"], values["relative_rms"]
        return {
            **values,
            "relative_rms_min": float(self.relative_rms.min()),
            "relative_rms_max": float(self.relative_rms.max()),
        }


def figures(
    wave: NDArray[np.floating], rate: int, *, prompt: NDArray[np.floating] | None = None
) -> MusicFigures:
    """Measure a recording.

    Args:
        wave: float samples (n,), at least one second.
        rate: in Hz.
        prompt: what the recording continues, for the relative level.

    Raises:
        DataError: shorter than a second, or not finite.
    """
    wave = np.asarray(wave, np.float32)
    if len(wave) < rate or not np.isfinite(wave).all():
        raise DataError(f"{len(wave)} samples at {rate} Hz: give at least one second, all finite")
    rms = rms_by_second(wave, rate)
    base = wave if prompt is None or not len(prompt) else np.asarray(prompt, np.float32)
    level = float(np.sqrt(np.square(base, dtype=np.float64).mean())) + _LEAST
    spectrum = power_spectrum(wave, N_FFT, N_FFT // 2).astype(np.float64)
    return MusicFigures(
        seconds=len(wave) / rate,
        rms=rms,
        relative_rms=rms / level,
        flatness=flatness(spectrum),
        onsets=len(onset_times(wave, rate)) * 10 * rate / len(wave),
        chroma_entropy=chroma_entropy(spectrum, rate),
    )


def rms_by_second(wave: NDArray[np.floating], rate: int) -> NDArray[np.float64]:
    """(whole seconds,) root mean square."""
    whole = wave[: len(wave) // rate * rate].reshape(-1, rate)
    return np.sqrt(np.square(whole, dtype=np.float64).mean(axis=1))


def flatness(spectrum: NDArray[np.float64]) -> float:
    """Mean over frames of geometric / arithmetic mean; (frames, bins) power."""
    inner = spectrum[:, 1:-1] + _LEAST
    return float((np.exp(np.log(inner).mean(axis=1)) / inner.mean(axis=1)).mean())


def onset_times(wave: NDArray[np.floating], rate: int) -> NDArray[np.float64]:
    """Seconds at which the spectrum rises: peaks of the log spectral flux.

    A peak must be the largest within 0.06 s, and exceed the median over a second around it by
    its own size and by a part of the recording's mean flux.
    """
    hop = round(rate * _ONSET_HOP_SECONDS)
    whole = (len(wave) - _ONSET_FFT) // hop * hop + _ONSET_FFT  # padding would sound like a click
    magnitude = np.sqrt(power_spectrum(wave[:whole], _ONSET_FFT, hop))
    level = float(magnitude.mean()) + _LEAST
    logs = np.log1p(10 * magnitude / level)
    flux = np.maximum(np.diff(logs, axis=0, prepend=logs[:1]), 0).mean(axis=1)
    apart = max(1, round(_ONSET_APART_SECONDS / _ONSET_HOP_SECONDS))
    around = max(3, round(0.5 / _ONSET_HOP_SECONDS))
    padded = np.pad(flux, around, mode="reflect" if len(flux) > around else "edge")
    median = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * around + 1), axis=1)
    edges = np.pad(flux, apart, mode="constant")
    largest = np.lib.stride_tricks.sliding_window_view(edges, 2 * apart + 1).max(axis=1)
    peaks = (flux == largest) & (flux > 2 * median) & (flux > median + 0.5 * flux.mean())
    return (np.flatnonzero(peaks & (flux > 0.02)) * hop + _ONSET_FFT // 2) / rate


def chroma_entropy(spectrum: NDArray[np.float64], rate: int) -> float:
    """Bits of the distribution of energy over pitch classes, 55 Hz to 2 kHz, A = 440 Hz."""
    frequency = np.arange(spectrum.shape[1]) * rate / (2 * (spectrum.shape[1] - 1))
    inside = (frequency >= 55) & (frequency <= min(2000.0, rate / 2))
    pitch = np.round(12 * np.log2(frequency[inside] / 440)).astype(np.int64) % 12
    energy = np.bincount(pitch, spectrum[:, inside].sum(axis=0), minlength=12)
    if energy.sum() <= 0:
        return 0.0
    share = energy / energy.sum()
    return float(-(share * np.log2(np.maximum(share, _LEAST))).sum())
