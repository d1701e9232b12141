"""Watches generated sound for what goes wrong in long runs: noise, silence, drones, loudness.

Every second is measured: RMS, spectral flatness (geometric over arithmetic mean of the power
spectrum, Hann windows of 2,048 samples: 0 for a tone, .56 for white noise) and the likeness of
its mean spectrum to that of the second before (cosine). What stays wrong for a while is said,
with the figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FRAME = 2048
BINS = _FRAME // 2 + 1
# Real piano stays below a flatness of .003 and white noise is at .56; hiss in speech passes .1.
_FLAT = 0.3
_SILENT = 10 ** (-66 / 20)
_FULL = 0.5
_STEADY_DB = 0.5
_ALIKE = 0.998
_SECONDS = {"silence": 2, "noise": 2, "loud": 2, "drone": 5}


@dataclass(frozen=True)
class Second:
    """The measures of one second; RMS relative to full scale."""

    rms: float
    flatness: float
    likeness: float


@dataclass(frozen=True)
class Finding:
    """Something wrong: "silence", "noise", "loud" or "drone", from `start` on (seconds)."""

    kind: str
    start: float
    measured: Second
    reference: float | None = None

    def __str__(self) -> str:
        at, m = f"from {self.start:.0f} s", self.measured
        if self.kind == "silence":
            level = f"{20 * math.log10(m.rms):.0f} dBFS" if m.rms > 0 else "digital zero"
            return f"{at}: silence (RMS {level})"
        if self.kind == "noise":
            return f"{at}: noise (spectral flatness {m.flatness:.2f}; white noise has .56)"
        if self.kind == "drone":
            return f"{at}: a drone (each second's spectrum is {m.likeness:.4f} alike, level steady)"
        against = "" if self.reference is None else f", {m.rms / self.reference:.1f} x the prompt's"
        return f"{at}: runaway loudness (RMS {m.rms:.2f} of full scale{against})"


def spectra(samples: NDArray[np.floating]) -> NDArray[np.float64]:
    """Power spectra (frames, 1,025) of samples (n,): Hann windows of 2,048, half overlapping."""
    samples = np.asarray(samples, np.float64)
    if len(samples) < _FRAME:
        samples = np.pad(samples, (0, _FRAME - len(samples)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, _FRAME)[:: _FRAME // 2]
    return np.square(np.abs(np.fft.rfft(frames * np.hanning(_FRAME))))


def likeness(power: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Cosine of two mean spectra (1,025,): 1 where they differ in level alone; 0 beside silence."""
    size = float(np.linalg.norm(power) * np.linalg.norm(other))
    return float(power @ other) / size if size else 0.0


def flatness(power: NDArray[np.float64]) -> float:
    """Geometric over arithmetic mean of power spectra, without DC, averaged; 0 for silence."""
    power = power[:, 1:]
    mean = power.mean(1)
    heard = mean > 0
    if not heard.any():
        return 0.0
    relative = power[heard] / mean[heard, None]
    return float(np.exp(np.log(np.maximum(relative, 1e-12)).mean(1)).mean())


class Guard:
    """Fed with samples as they come, says what has gone wrong and when.

    Args:
        rate: in Hz.
        reference: RMS of the prompt; loudness and silence are then told relative to it.

    >>> guard = Guard(8000)
    >>> [str(f) for f in guard.update(np.zeros(24000))]
    ['from 0 s: silence (RMS digital zero)']
    """

    def __init__(self, rate: int, reference: float | None = None) -> None:
        self._rate = rate
        self._reference = reference if reference else None
        self._rest = np.empty(0, np.float32)
        self._seconds = 0
        self._run = dict.fromkeys(_SECONDS, 0)
        self._before: tuple[NDArray[np.float64], float] | None = None

    def update(self, samples: NDArray[np.floating]) -> list[Finding]:
        """Findings that became certain with these samples (n,); each is said once."""
        self._rest = np.concatenate([self._rest, np.asarray(samples, np.float32)])
        found = []
        while len(self._rest) >= self._rate:
            found += self._second(self._rest[: self._rate])
            self._rest = self._rest[self._rate :]
        return found

    def _second(self, samples: NDArray[np.float32]) -> list[Finding]:
        # Not the mean square: a constant offset is silence too.
        rms, frames = float(np.std(samples, dtype=np.float64)), spectra(samples)
        power = frames.mean(0)
        alike, change = 0.0, math.inf
        if self._before is not None and rms > 0 and self._before[1] > 0:
            other = self._before[0]
            alike = likeness(power, other)
            change = abs(20 * math.log10(rms / self._before[1]))
        self._before = power, rms
        measured = Second(rms, flatness(frames), alike)
        silent = rms < (_SILENT if self._reference is None else self._reference * 0.01)
        wrong = {
            "silence": silent,
            "noise": measured.flatness > _FLAT and not silent,
            "loud": rms > (_FULL if self._reference is None else self._reference * 5),
            "drone": alike > _ALIKE and change < _STEADY_DB and not silent,
        }
        self._seconds += 1
        found = []
        for kind, holds in wrong.items():
            self._run[kind] = self._run[kind] + 1 if holds else 0
            if self._run[kind] == _SECONDS[kind]:
                start = float(self._seconds - _SECONDS[kind])
                found.append(Finding(kind, start, measured, self._reference))
        return found
