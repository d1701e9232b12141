"""A run's figures as MultiQC custom content: one JSON object a plot, in `*_mqc.json` files.

Format: https://docs.seqera.io/multiqc/custom_content (keys id, section_name, description,
plot_type, pconfig, data).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mambabio.evaluation import Evaluation

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]

_MOST_POINTS = 500
_PARENT = {
    "parent_id": "mambabio",
    "parent_name": "mambabio",
    "parent_description": "Species classification of DNA with a selective state space model.",
}


def _section(
    name: str, title: str, description: str, plot: str, config: dict[str, Any], data: Any
) -> dict[str, Any]:
    ident = f"mambabio_{name}"
    return {
        "id": ident,
        **_PARENT,
        "section_name": title,
        "description": description,
        "plot_type": plot,
        "pconfig": {"id": f"{ident}_plot", "title": f"mambabio: {title}", **config},
        "data": data,
    }


def _line(curve: tuple[Sequence[float], Sequence[float]]) -> dict[str, float]:
    steps, values = curve
    every = max(1, -(-len(steps) // _MOST_POINTS))
    points = list(zip(steps, values, strict=True))
    chosen = points[::every]
    if points and chosen[-1] != points[-1]:
        chosen.append(points[-1])
    return {f"{step:g}": float(value) for step, value in chosen}


def training_sections(
    curves: Curves, run: str, evaluation: Evaluation | None
) -> dict[str, dict[str, Any]]:
    """Loss and accuracy against the step, by section name."""
    found: dict[str, dict[str, Any]] = {}
    loss = {
        f"{run} {part}": _line(curves[name])
        for part, name in (("training", "train/loss"), ("validation", "val/loss"))
        if name in curves
    }
    if loss:
        found["loss"] = _section(
            "loss", "Training loss", "Cross-entropy a window, in nats.", "linegraph",
            {"xlab": "optimiser step", "ylab": "loss", "ymin": 0}, loss,
        )  # fmt: skip
    accuracy = {
        f"{run} {part}": _line(curves[name])
        for part, name in (
            ("training", "train/accuracy"),
            ("validation, macro", "val/macro_accuracy"),
        )
        if name in curves
    }
    if accuracy:
        steps = [step for name in curves if name.endswith("accuracy") for step in curves[name][0]]
        levels = {}
        if evaluation is not None:
            levels["chance"] = evaluation.chance
            if evaluation.baseline is not None:
                levels[f"{evaluation.baseline.name}, {evaluation.split}"] = (
                    evaluation.baseline.macro_accuracy
                )
        for name, level in levels.items():
            accuracy[name] = {f"{min(steps):g}": level, f"{max(steps):g}": level}
        found["accuracy"] = _section(
            "accuracy", "Training accuracy", "Beside chance and the k-mer baseline.", "linegraph",
            {"xlab": "optimiser step", "ylab": "accuracy", "ymin": 0, "ymax": 1}, accuracy,
        )  # fmt: skip
    return found


def evaluation_sections(
    main: Evaluation, by_window: Sequence[Evaluation], run: str
) -> dict[str, dict[str, Any]]:
    """Summary row, confusion matrix and accuracy against window length, by section name."""
    summary: dict[str, Any] = {
        "macro_accuracy": main.macro_accuracy,
        "chance": main.chance,
        "windows": main.windows,
    }
    if main.baseline is not None:
        summary["baseline"] = main.baseline.macro_accuracy
    share = main.confusion / main.confusion.sum(axis=1, keepdims=True).clip(min=1)
    found = {
        "generalstats": {
            "id": "mambabio_generalstats",
            "plot_type": "generalstats",
            "pconfig": [
                {
                    key: {"title": title, "description": text, **scale}
                    for key, title, text, scale in (
                        ("macro_accuracy", "Macro accuracy", main.headline, _UNIT),
                        ("baseline", "k-mer baseline", "Macro accuracy on the same windows", _UNIT),
                        ("chance", "Chance", "Macro accuracy of guessing", _UNIT),
                        ("windows", "Windows", f"{main.split} windows", {"format": "{:,.0f}"}),
                    )
                    if key in summary
                }
            ],
            "data": {run: summary},
        },
        "confusion": _section(
            "confusion", "Confusion matrix",
            f"{main.headline}. Rows: true class; columns: called; share of the true class.",
            "heatmap", {"xlab": "called", "ylab": "true", "min": 0, "max": 1, "square": True},
            {
                label: dict(zip(main.labels, map(float, row), strict=True))
                for label, row in zip(main.labels, share, strict=True)
            },
        ),
    }  # fmt: skip
    lines = {run: {str(e.window): e.macro_accuracy for e in by_window}}
    lines["chance"] = {str(e.window): e.chance for e in by_window}
    rival = {str(e.window): e.baseline.macro_accuracy for e in by_window if e.baseline is not None}
    if rival:
        lines["k-mer baseline"] = rival
    found["windows"] = _section(
        "windows", "Accuracy against window length", f"Macro accuracy, {main.split}.", "linegraph",
        {"xlab": "window (bases)", "ylab": "macro accuracy", "ymin": 0, "ymax": 1, "xlog": True},
        lines,
    )  # fmt: skip
    return found


_UNIT = {"min": 0, "max": 1, "format": "{:,.3f}"}
