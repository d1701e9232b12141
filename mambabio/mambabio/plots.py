"""Figures of a run, as matplotlib `Figure` objects that belong to no window and no global state.

Every figure that shows an accuracy also shows chance and, where it is known, the k-mer baseline.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mambacore.cache import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mambabio.metrics import Reliability

# Okabe and Ito's colours, told apart by colour-blind readers too.
MODEL, TRAIN, BASELINE, CHANCE = "#0072B2", "#7FB8DA", "#D55E00", "#777777"
_DPI = 130


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a PNG beside `path` and rename it, so that a crash leaves the old one whole."""
    with atomic_path(path) as beside:
        # No date and no version inside, so that equal results are equal files.
        figure.savefig(beside, format="png", metadata={"Software": None})
    return Path(path)


def _plain(axes: Axes, grid: str = "y") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e6e6e6", linewidth=0.8)  # pyright: ignore[reportArgumentType]
    axes.set_axisbelow(True)


def _smooth(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running mean over a twentieth of the points, centred, shorter at the ends."""
    half = len(y) // 40
    if half < 1:
        return y
    total = np.concatenate([[0.0], np.cumsum(y)])
    i = np.arange(len(y))
    low, high = np.maximum(i - half, 0), np.minimum(i + half + 1, len(y))
    return (total[high] - total[low]) / (high - low)


def _level(axes: Axes, value: float, colour: str, text: str) -> None:
    axes.axhline(value, color=colour, linewidth=1.3, linestyle="--", zorder=1, label=text)


def training_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    chance: float | None = None,
    baseline: tuple[str, float] | None = None,
) -> Figure:
    """Loss, accuracy and schedule against the optimiser step, one above the other.

    Args:
        curves: name of a logged column (`train/loss`, `val/macro_accuracy`, `lr`, ...) to its
            steps and values; columns that are missing are left out.
        chance: accuracy of guessing.
        baseline: (name, macro accuracy) of the k-mer baseline on the validation windows.
    """
    schedule = [name for name in ("train/window", "lr") if name in curves]
    panels = 2 + bool(schedule)
    figure = _figure(7.2, 2.6 * panels)
    axes = figure.subplots(panels, 1, sharex=True)

    def draw(ax: Axes, name: str, colour: str, label: str) -> None:
        if name not in curves or len(curves[name][0]) == 0:
            return
        x, y = (np.asarray(v, dtype=np.float64) for v in curves[name])
        if name.startswith("train/"):
            ax.plot(x, y, color=colour, alpha=0.25, linewidth=0.7)
            ax.plot(x, _smooth(y), color=colour, linewidth=1.6, label=label)
        else:
            ax.plot(x, y, color=colour, linewidth=1.8, label=label, marker="o", markersize=3)

    draw(axes[0], "train/loss", TRAIN, "training")
    draw(axes[0], "val/loss", MODEL, "validation")
    axes[0].set_ylabel("loss (nats a window)")
    axes[0].set_ylim(bottom=0)
    draw(axes[1], "train/accuracy", TRAIN, "training, random windows")
    draw(axes[1], "val/macro_accuracy", MODEL, "validation, macro")
    if baseline is not None:
        _level(axes[1], baseline[1], BASELINE, f"{baseline[0]} ({baseline[1]:.3f})")
    if chance is not None:
        _level(axes[1], chance, CHANCE, f"chance ({chance:.3f})")
    axes[1].set_ylabel("accuracy")
    axes[1].set_ylim(0, 1.02)
    if schedule:
        _draw_schedule(axes[2], curves)
    for ax in axes[:2]:
        _plain(ax)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8, frameon=False, loc="best")
    axes[-1].set_xlabel("optimiser step")
    axes[0].set_title("Training", loc="left", fontweight="bold")
    return figure


def _draw_schedule(ax: Axes, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    _plain(ax)
    rate_axes = ax
    if "train/window" in curves:
        x, y = curves["train/window"]
        ax.step(x, y, where="post", color="#009E73", linewidth=1.6)
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
        ax.set_ylabel("window (bases)", color="#009E73")
        rate_axes = ax.twinx() if "lr" in curves else ax
    if "lr" in curves:
        x, y = curves["lr"]
        rate_axes.plot(x, y, color="#CC79A7", linewidth=1.4)
        rate_axes.set_ylabel("learning rate", color="#CC79A7")
        rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        rate_axes.spines[["top"]].set_visible(False)


def confusion_figure(confusion: NDArray[np.int64], labels: Sequence[str], title: str) -> Figure:
    """Confusion matrix: colour is the share of the true class, text the count and the share.

    Labels and numbers shrink with the number of classes; beyond 30 classes no number is written.
    """
    counts = np.asarray(confusion)
    n = len(labels)
    totals = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(totals, 1)
    side = float(np.clip(2.2 + 0.62 * n, 4.2, 16))
    figure = _figure(side + 1.4, side)
    ax = figure.subplots()
    image = ax.imshow(share, vmin=0, vmax=1, cmap="Blues")
    size = float(np.clip(12 - 0.2 * n, 6, 10))
    if n * max(map(len, labels)) <= 9 * side:
        ax.set_xticks(range(n), labels, fontsize=size)
    else:
        ax.set_xticks(range(n), labels, rotation=45, ha="right", fontsize=size)
        for tick in ax.get_xticklabels():
            tick.set_rotation_mode("anchor")
    names = [f"{name} ({t:,})" for name, t in zip(labels, totals[:, 0], strict=True)]
    ax.set_yticks(range(n), names, fontsize=size)
    ax.set_xlabel("called")
    ax.set_ylabel("true (windows)")
    if n <= 30:
        for i, j in np.argwhere(counts > 0):
            text = f"{share[i, j]:.2f}" if n > 12 else f"{counts[i, j]:,}\n{share[i, j]:.2f}"
            colour = "white" if share[i, j] > 0.55 else "#222222"
            ax.text(j, i, text, ha="center", va="center", color=colour, fontsize=max(size - 1, 5.5))
    lines = textwrap.wrap(title, int(13 * side))
    figure.suptitle("\n".join(lines), x=0.02, ha="left", fontsize=10)
    bar = figure.colorbar(image, ax=ax, shrink=0.8)
    bar.set_label("share of the true class")
    return figure


def window_figure(
    windows: Sequence[int],
    accuracy: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    *,
    chance: float,
    baseline: Sequence[float | None] = (),
    trained: int | None = None,
    split: str = "test",
) -> Figure:
    """Macro accuracy against window length, with intervals, chance and the k-mer baseline.

    Args:
        windows: window lengths in bases, increasing.
        accuracy, intervals: macro accuracy and its (low, high) at each length.
        chance: accuracy of guessing; baseline: the k-mer baseline at each length, None where
            it is not known; trained: the length that the model was trained on.
    """
    figure = _figure(7.0, 4.2)
    ax = figure.subplots()
    x = np.asarray(windows, dtype=np.float64)
    y = np.asarray(accuracy)
    low, high = np.asarray(intervals, dtype=np.float64).T
    ax.fill_between(x, low, high, color=MODEL, alpha=0.15, linewidth=0)
    ax.errorbar(
        x, y, yerr=[np.maximum(y - low, 0), np.maximum(high - y, 0)], color=MODEL, marker="o",
        capsize=3, linewidth=1.8, label="this model, 95 % interval",
    )  # fmt: skip
    known = [(w, b) for w, b in zip(windows, baseline, strict=False) if b is not None]
    if known:
        bx, by = zip(*known, strict=True)
        ax.plot(bx, by, color=BASELINE, marker="s", linestyle="--", label="best k-mer baseline")
    _level(ax, chance, CHANCE, f"chance ({chance:.3f})")
    if trained is not None:
        ax.axvline(trained, color="#bbbbbb", linewidth=1, linestyle=":", zorder=0)
        ax.annotate(
            "trained length ", (trained, 1.0), xycoords=ax.get_xaxis_transform(), fontsize=8,
            color="#666666", va="bottom", ha="center",
        )  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_xticks(x, [f"{w:,}" for w in windows], rotation=0 if len(x) < 9 else 45)
    ax.minorticks_off()
    if len(x) == 1:
        ax.set_xlim(x[0] / 2, x[0] * 2)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("window (bases)")
    ax.set_ylabel("macro accuracy")
    ax.set_title(f"Accuracy against window length, {split}", loc="left", fontsize=10, pad=16)
    _plain(ax)
    ax.legend(fontsize=8, frameon=False, loc="best")
    return figure


def reliability_figure(curve: Reliability, *, chance: float) -> Figure:
    """Reliability diagram: accuracy in bins of confidence, above how many windows each holds."""
    figure = _figure(5.0, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    full = curve.count > 0
    top.plot([0, 1], [0, 1], color=CHANCE, linestyle="--", linewidth=1.2, label="calibrated")
    top.plot(
        curve.confidence[full], curve.accuracy[full],
        color=MODEL, marker="o", label=f"this model (ECE {curve.ece:.3f})",
    )  # fmt: skip
    top.axhline(chance, color=CHANCE, linewidth=1, linestyle=":", label=f"chance ({chance:.3f})")
    top.set_ylim(0, 1.02)
    top.set_xlim(0, 1)
    top.set_ylabel("accuracy in the bin")
    top.set_title("Calibration", loc="left", fontsize=10)
    top.legend(fontsize=8, frameon=False, loc="upper left")
    left, width = curve.edges[:-1], np.diff(curve.edges)
    bottom.bar(left, curve.count, width=width, align="edge", color=TRAIN, edgecolor="white")
    bottom.set_ylabel("windows")
    bottom.set_xlabel("confidence")
    for ax in (top, bottom):
        _plain(ax)
    return figure
