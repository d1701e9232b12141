"""Figures of the recipes: lines over a logarithmic axis, one colour a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")

Curve = tuple[Sequence[float], Sequence[float]]


def line_figure(
    panels: Sequence[tuple[str, Mapping[str, Sequence[Curve]], str, str]],
    *,
    log_y: Sequence[bool] = (),
    levels: Sequence[Mapping[str, float]] = (),
) -> Figure:
    """Panels side by side, x on a logarithmic axis to base 2.

    Args:
        panels: (title, name to its curves, label of x, label of y); a name's curves share one
            colour and are (xs, ys).
        log_y: panels with a logarithmic y.
        levels: of each panel, dashed lines across it by name.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6 * len(panels), 3.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    colours: dict[str, str] = {}
    for number, (title, lines, x_label, y_label) in enumerate(panels):
        ax = figure.add_subplot(1, len(panels), number + 1)
        for name, curves in lines.items():
            colour = colours.setdefault(name, COLOURS[len(colours) % len(COLOURS)])
            for place, (xs, ys) in enumerate(curves):
                label = name if place == 0 else None
                ax.plot(xs, ys, "o-", color=colour, markersize=3.5, linewidth=1.4, label=label)
        for name, value in levels[number].items() if number < len(levels) else ():
            ax.axhline(value, color="#777777", linewidth=1, linestyle="--", label=name)
        ax.set_xscale("log", base=2)
        if number < len(log_y) and log_y[number]:
            ax.set_yscale("log")
        ax.set(title=title, xlabel=x_label, ylabel=y_label)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e6e6e6", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.legend(frameon=False, fontsize=8)
    return figure
