"""Figures of a report: training curves, and spectrograms of real beside generated sound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mambaaudio.plots import decibels
from mambacore.tables import Curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 130
_MODEL, _TRAIN, _FLOOR, _GREY = "#0072B2", "#7FB8DA", "#D55E00", "#777777"
_COLUMNS = 1500


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def curves_figure(curves: Mapping[str, Curve], floors: Mapping[str, float]) -> Figure:
    """Bits per sample and learning rate against the step.

    Args:
        curves: name of a logged column to its steps and values.
        floors: bits of floors on the validation part, by name; drawn as levels.
    """
    figure = _figure(7.2, 4.6)
    bits, rate = figure.subplots(2, 1, sharex=True, height_ratios=[2.4, 1])
    if "train/bits" in curves:
        steps, values = curves["train/bits"]
        bits.plot(steps, values, color=_TRAIN, alpha=0.35, linewidth=0.7)
        bits.plot(steps, _smooth(values), color=_TRAIN, linewidth=1.6, label="training")
    if "val/bits" in curves:
        bits.plot(*curves["val/bits"], color=_MODEL, linewidth=1.8, marker="o", markersize=3,
                  label="validation")  # fmt: skip
    for name, level in floors.items():
        bits.axhline(level, color=_FLOOR, linewidth=1.2, linestyle="--")
        bits.annotate(
            f"{name} {level:.2f}", (0.995, level), xycoords=("axes fraction", "data"),
            ha="right", va="bottom", fontsize=8, color=_FLOOR,
        )  # fmt: skip
    bits.set_ylabel("bits per sample")
    shown = [y for name in ("train/bits", "val/bits") for y in curves.get(name, ([], []))[1]]
    if shown:
        # The first steps' height must not flatten the rest.
        top = max(np.quantile(shown, 0.97), *(floors.values() or [0.0]))
        bits.set_ylim(max(0.0, min([*shown, *floors.values()]) - 0.3), float(top) + 0.3)
    bits.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.93))
    if "lr" in curves:
        rate.plot(*curves["lr"], color=_GREY, linewidth=1.4)
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.set_xlabel("optimiser step")
    rate.xaxis.get_major_locator().set_params(integer=True)
    for axes in (bits, rate):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure


def _smooth(values: Sequence[float]) -> NDArray[np.float64]:
    """Running mean over a twentieth of the points, centred, shorter at the ends."""
    y = np.asarray(values, np.float64)
    half = len(y) // 40
    if half < 1:
        return y
    total = np.concatenate([[0.0], np.cumsum(y)])
    i = np.arange(len(y))
    low, high = np.maximum(i - half, 0), np.minimum(i + half + 1, len(y))
    return (total[high] - total[low]) / (high - low)


def pair_figure(
    real: NDArray[np.floating],
    generated: NDArray[np.floating],
    rate: int,
    prompt: float = 0.0,
    *,
    titles: tuple[str, str] = ("real", "generated"),
) -> Figure:
    """Two spectrograms on the same axes and the same colours, real above generated.

    Args:
        real, generated: samples (n,), full scale 1.
        rate: of both, in Hz.
        prompt: seconds at the beginning of both that the model heard; marked.
    """
    figure = _figure(9.5, 5.2)
    rows = figure.subplots(2, 1, sharex=True, sharey=True)
    n_fft = 512 if rate < 12000 else 1024
    while n_fft > 128 and max(len(real), len(generated)) < 60 * n_fft / 4:
        n_fft //= 2  # a short clip's course matters more than its pitch
    shown = None
    for axes, wave, title in zip(rows, (real, generated), titles, strict=True):
        wave = np.asarray(wave, np.float32)
        picture = decibels(wave if len(wave) else np.zeros(1, np.float32), n_fft)
        step = max(1, math.ceil(picture.shape[1] / _COLUMNS))
        hop = n_fft / 4
        edges = (-0.5 * hop / rate, (picture.shape[1] - 0.5) * hop / rate, 0, rate / 2000)
        shown = axes.imshow(
            picture[:, ::step], origin="lower", aspect="auto", extent=edges, vmin=-80, vmax=0,
            cmap="magma", interpolation="nearest",
        )  # fmt: skip
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylabel("frequency (kHz)")
        if prompt:
            axes.axvline(prompt, color="#56B4E9", linewidth=1.4)
    if prompt:
        rows[0].annotate(
            "prompt ends", (prompt, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3),
            textcoords="offset points", ha="center", fontsize=8, color="#0072B2",
        )  # fmt: skip
    rows[-1].set_xlim(0, max(len(real), len(generated), 1) / rate)
    rows[-1].set_xlabel("time (s)")
    if shown is not None:
        figure.colorbar(shown, ax=list(rows), label="dB below its peak", pad=0.01, aspect=30)
    return figure
