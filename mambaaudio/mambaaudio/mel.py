"""Log-mel spectrograms, in NumPy: what the clip classifier sees and memorisation compares."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray


@cache
def filters(rate: int, n_fft: int, mels: int) -> NDArray[np.float32]:
    """Triangular filters (n_fft / 2 + 1, mels), HTK's mel scale from 50 Hz to half the rate.

    >>> filters(8000, 256, 40).shape
    (129, 40)
    """
    from mambaaudio import _torchaudio

    bank = _torchaudio.functional().melscale_fbanks(
        n_fft // 2 + 1, f_min=50.0, f_max=rate / 2, n_mels=mels, sample_rate=rate
    )
    return bank.numpy()


def frames_of(wave: NDArray[np.floating], size: int, hop: int) -> NDArray[np.float32]:
    """(frames, size) overlapping stretches; the last is padded with zeros."""
    wave = np.asarray(wave, np.float32)
    count = 1 + max(0, -(-(len(wave) - size) // hop))
    padded = np.zeros((count - 1) * hop + size, np.float32)
    padded[: len(wave)] = wave
    return np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]


def power_spectrum(wave: NDArray[np.floating], n_fft: int, hop: int) -> NDArray[np.float32]:
    """(frames, n_fft / 2 + 1) power under a periodic Hann window."""
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)
    spectrum = np.fft.rfft(frames_of(wave, n_fft, hop) * window, axis=1)
    return (spectrum.real**2 + spectrum.imag**2).astype(np.float32)


def log_mel(
    wave: NDArray[np.floating], rate: int, *, hop: int, mels: int = 40, n_fft: int | None = None
) -> NDArray[np.float32]:
    """ln(mel power + 1e-6), (mels, frames). `n_fft` is about 32 ms by default, a power of two."""
    n_fft = n_fft or 1 << (round(rate * 0.032) - 1).bit_length()
    power = power_spectrum(wave, n_fft, hop)
    return np.log(power @ filters(rate, n_fft, mels) + np.float32(1e-6)).T
