"""Pictures of a clip: waveform, spectrogram and how likely each sample was to the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mambacore.cache import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 130
_COLUMNS = 1500
_BLUE, _ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito's, told apart by colour-blind readers


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a PNG beside `path` and rename it, so that a crash leaves the old one whole."""
    with atomic_path(path) as beside:
        figure.savefig(beside, format="png", metadata={"Software": None})
    return Path(path)


def decibels(samples: NDArray[np.floating], n_fft: int) -> NDArray[np.float64]:
    """Power spectrogram (n_fft / 2 + 1, frames) in dB below its peak, Hann windows, hop n_fft / 4.

    At least one frame; floored at -100 dB.
    """
    samples = np.asarray(samples, np.float64)
    samples = np.pad(samples, (n_fft // 2, max(n_fft // 2, n_fft - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, n_fft)[:: n_fft // 4]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(n_fft)))).T
    return 10 * np.log10(np.maximum(power / max(power.max(), 1e-20), 1e-10))


def clip_figure(
    waveform: NDArray[np.float32],
    rate: int,
    log_probabilities: NDArray[np.float32] | None = None,
    *,
    prompt: NDArray[np.float32] | None = None,
    title: str = "",
) -> Figure:
    """Waveform, spectrogram and bits a sample against time.

    Args:
        waveform: (n,) what was generated, full scale 1.
        rate: in Hz.
        log_probabilities: (n,) of the samples, in nats; their panel is left out when None.
        prompt: (m,) what was heard before, drawn in front and marked.
        title: above all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heard = 0 if prompt is None else len(prompt)
    whole = waveform if prompt is None else np.concatenate([prompt, waveform])
    whole = whole if len(whole) else np.zeros(1, np.float32)
    heights = [1.2, 2.2] + ([1.0] if log_probabilities is not None else [])
    figure = Figure(figsize=(9.5, 1.6 * sum(heights)), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)
    axes = [row[0] for row in rows]
    if title:
        axes[0].set_title(title, loc="left", fontsize=10)
    seconds = len(whole) / rate
    _envelope(axes[0], whole, rate)
    _spectrogram(figure, axes[1], whole, rate)
    if log_probabilities is not None:
        _bits(axes[2], log_probabilities, rate, heard)
    axes[-1].set_xlabel("time (s)")
    axes[-1].set_xlim(0, seconds)
    if heard:
        for number, axis in enumerate(axes):
            axis.axvline(heard / rate, color=_ORANGE, linewidth=1.2)
            if number == 0:
                axis.annotate(
                    "prompt ends", (heard / rate, 1.0), xycoords=("data", "axes fraction"),
                    xytext=(0, 2), textcoords="offset points", fontsize=8, color=_ORANGE,
                    ha="center",
                )  # fmt: skip
    return figure


def _envelope(axis: Any, samples: NDArray[np.float32], rate: int) -> None:
    """Least and greatest value of each column of pixels, so that no peak is lost."""
    step = max(1, math.ceil(len(samples) / _COLUMNS))
    if step == 1:
        axis.plot(np.arange(len(samples)) / rate, samples, color=_BLUE, linewidth=0.8)
    else:
        padded = np.pad(samples, (0, -len(samples) % step), mode="edge").reshape(-1, step)
        time = (np.arange(len(padded)) + 0.5) * step / rate
        axis.fill_between(time, padded.min(1), padded.max(1), color=_BLUE, linewidth=0.4)
    limit = max(0.05, 1.08 * float(np.abs(samples).max()))
    axis.set_ylim(-limit, limit)
    axis.set_ylabel("amplitude")
    axis.spines[["top", "right"]].set_visible(False)


def _spectrogram(figure: Figure, axis: Any, samples: NDArray[np.float32], rate: int) -> None:
    n_fft = 512 if rate < 12000 else 1024
    picture = decibels(samples, n_fft)
    step = max(1, picture.shape[1] // _COLUMNS)
    hop = n_fft / 4
    edges = (-0.5 * hop / rate, (picture.shape[1] - 0.5) * hop / rate, 0, rate / 2000)
    shown = axis.imshow(
        picture[:, ::step], origin="lower", aspect="auto", extent=edges, vmin=-80, vmax=0,
        cmap="magma", interpolation="nearest",
    )  # fmt: skip
    axis.set_ylabel("frequency (kHz)")
    figure.colorbar(shown, ax=axis, label="dB below peak", pad=0.01, aspect=14)


def _bits(axis: Any, logs: NDArray[np.float32], rate: int, heard: int) -> None:
    """Mean of every column, because single samples hide the course."""
    bits = -np.asarray(logs, np.float64) / math.log(2)
    step = max(1, math.ceil(len(bits) / 400))
    whole = len(bits) // step * step
    if not whole:
        return
    means = bits[:whole].reshape(-1, step).mean(1)
    time = (heard + (np.arange(len(means)) + 0.5) * step) / rate
    axis.plot(time, means, color=_BLUE, linewidth=1.1)
    axis.axhline(float(bits.mean()), color="#777777", linewidth=1.0, linestyle="--")
    axis.annotate(
        f"mean {bits.mean():.2f}", (0.995, float(bits.mean())), xycoords=("axes fraction", "data"),
        ha="right", va="bottom", fontsize=8, color="#555555",
    )  # fmt: skip
    axis.set_ylim(0, 1.2 * float(means.max()) + 0.1)
    axis.set_ylabel("bits a sample\n(as drawn)")
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
