"""A run folder drawn: curves, confusion matrix, accuracy by window, as one page with figures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from mambabio.evaluation import Evaluation
from mambabio.evaluation_text import (
    CLASS_HEADER,
    SUMMARY_HEADER,
    class_rows,
    heading,
    markdown_table,
    remarks,
    summary_rows,
)
from mambabio.info import describe
from mambabio.multiqc import evaluation_sections, training_sections
from mambabio.plots import confusion_figure, save_figure, training_curves, window_figure
from mambacore import tables
from mambacore.cache import atomic_write
from mambacore.errors import DataError
from mambacore.tables import Curve, read_curves

EVALUATIONS = "evaluation"
REPORT = "report"


def read_evaluations(folder: str | PathLike[str]) -> list[Evaluation]:
    """Every evaluation that was saved in a folder, by split and window; none if it is missing.

    Raises:
        DataError: a file that is not an evaluation, by name.
    """
    found = tables.read_evaluations(folder, Evaluation.from_dict)
    return sorted(found, key=lambda e: (e.split, e.window))


def main_evaluation(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The one to show first: test before validation, the trained length before others."""
    order = {"test": 0, "val": 1, "train": 2}
    return min(
        evaluations,
        key=lambda e: (order.get(e.split, 3), abs(math.log(e.window / e.trained_window))),
        default=None,
    )


def write_report(
    run: str | PathLike[str], out: str | PathLike[str] | None = None, *, name: str | None = None
) -> Path:
    """Draw a run folder into one Markdown page with PNG figures and MultiQC files.

    Reads `metrics.csv`, `evaluation/*.json` (what `Evaluation.save` writes) and `model/`; each
    may be missing, and what it would show is then left out and said so. Writes `report.md`,
    `training.png`, `confusion.png`, `accuracy-by-window.png` and `*_mqc.json`.

    Args:
        run: the run folder.
        out: the folder to write to; `report/` in the run folder by default.
        name: what the run is called; the folder's name by default.

    Returns:
        The path of the page.

    Raises:
        DataError: the folder holds nothing to report, or a file in it is damaged.
    """
    folder = Path(run)
    target = folder / REPORT if out is None else Path(out)
    title = name or folder.resolve().name
    metrics = folder / "metrics.csv"
    curves = read_curves(metrics) if metrics.is_file() else {}
    evaluations = read_evaluations(folder / EVALUATIONS)
    main = main_evaluation(evaluations)
    if not curves and main is None:
        raise DataError(
            f"nothing to report in {folder}: it has no metrics.csv with measurements and no "
            f"{EVALUATIONS}/ with evaluations. Give the folder of a run"
        )
    target.mkdir(parents=True, exist_ok=True)
    page = [f"# {title}", ""]
    sections = {}
    page += _model_part(folder)
    if curves:
        page += _training_part(curves, evaluations, target)
        sections |= training_sections(curves, title, _beside_curves(evaluations))
    if main is not None:
        same = [e for e in evaluations if e.split == main.split]
        page += _evaluation_part(main, same, target)
        sections |= evaluation_sections(main, same, title)
    else:
        page += ["No evaluation is saved in this run: `evaluate` adds one.", ""]
    for key, content in sections.items():
        with atomic_write(target / f"mambabio_{key}_mqc.json", "w") as file:
            json.dump(content, file, indent=1, allow_nan=False)
    path = target / "report.md"
    with atomic_write(path, "w") as file:
        file.write("\n".join(page).rstrip() + "\n")
    return path


def _beside_curves(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """Whose chance and baseline stand beside the curves: validation's if it has a baseline."""
    validation = main_evaluation([e for e in evaluations if e.split == "val"])
    main = main_evaluation(evaluations)
    if validation is None or (validation.baseline is None and main and main.baseline is not None):
        return main
    return validation


def _model_part(folder: Path) -> list[str]:
    try:
        facts = describe(folder)
    except DataError:
        return ["The run has exported no model yet.", ""]
    rows = [
        ("classes", ", ".join(facts["labels"])),
        ("trained window", f"{facts['window']:,} bases"),
        ("parameters", f"{facts['parameters']:,}"),
        ("layers", ", ".join(facts["mixers"])),
        ("weights (SHA-256)", facts["weights_sha256"]),
    ]
    return ["## Model", "", markdown_table(("", ""), rows), ""]


def _training_part(
    curves: dict[str, Curve], evaluations: Sequence[Evaluation], target: Path
) -> list[str]:
    beside = _beside_curves(evaluations)
    baseline = None
    if beside is not None and beside.baseline is not None:
        label = f"{beside.baseline.name}, {beside.split}"
        baseline = label, beside.baseline.macro_accuracy
    chance = None if beside is None else beside.chance
    figure = training_curves(curves, chance=chance, baseline=baseline)
    save_figure(figure, target / "training.png")
    page = ["## Training", "", "![loss, accuracy and schedule](training.png)", ""]
    if "val/macro_accuracy" in curves:
        steps, values = curves["val/macro_accuracy"]
        best = max(range(len(values)), key=values.__getitem__)
        said = f"Best validation macro accuracy {values[best]:.3f} at step {steps[best]:,.0f}"
        levels = [] if chance is None else [("chance", chance)]
        levels += [] if baseline is None else [baseline]
        if levels:
            said += " (" + "; ".join(f"{name} {level:.3f}" for name, level in levels) + ")"
        page += [f"{said}; last step {max(max(x) for x, _ in curves.values()):,.0f}.", ""]
    return page


def _evaluation_part(main: Evaluation, same: Sequence[Evaluation], target: Path) -> list[str]:
    save_figure(
        confusion_figure(main.confusion, main.labels, main.headline), target / "confusion.png"
    )
    figure = window_figure(
        [e.window for e in same],
        [e.macro_accuracy for e in same],
        [(e.interval.low, e.interval.high) for e in same],
        chance=main.chance,
        baseline=[e.baseline and e.baseline.macro_accuracy for e in same],
        trained=main.trained_window,
        split=main.split,
    )
    save_figure(figure, target / "accuracy-by-window.png")
    lengths = [
        (
            f"{e.window:,}",
            f"{e.windows:,}",
            f"{e.macro_accuracy:.3f}",
            f"{e.interval.low:.3f} to {e.interval.high:.3f}",
            "-" if e.baseline is None else f"{e.baseline.macro_accuracy:.3f} ({e.baseline.name})",
            f"{e.chance:.3f}",
        )
        for e in same
    ]
    header = ("window", "windows", "macro accuracy", "interval", "k-mer baseline", "chance")
    hint = ["`evaluate` with other window lengths adds points to this figure.", ""]
    return [
        "## Evaluation",
        "",
        heading(main),
        "",
        markdown_table(SUMMARY_HEADER, summary_rows(main)),
        "",
        *(f"- {line}" for line in remarks(main)),
        "",
        markdown_table(CLASS_HEADER, class_rows(main)),
        "",
        "![confusion matrix](confusion.png)",
        "",
        "## Accuracy against window length",
        "",
        "![accuracy against window length](accuracy-by-window.png)",
        "",
        markdown_table(header, lengths),
        "",
        *(hint if len(same) == 1 else []),
    ]
