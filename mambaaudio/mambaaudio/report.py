"""A run folder as a page: curves, figures, and players of real beside generated sound."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mambaaudio.evaluation import BitsRow, Evaluation
from mambaaudio.info import describe
from mambaaudio.plots import save_figure
from mambaaudio.report_figures import curves_figure, pair_figure
from mambaaudio.writer import WaveformWriter
from mambacore import tables
from mambacore.cache import atomic_write
from mambacore.errors import DataError
from mambacore.tables import Curve, read_curves

EVALUATIONS = "evaluation"
REPORT = "report"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
img { max-width: 100% } table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left } figure { margin: 1rem 0 }
audio { width: 100% } .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem }
"""


@dataclass(frozen=True, eq=False)
class Pair:
    """A real recording and what the model made: samples (n,) at `rate`.

    name: what it is called. prompt: seconds at the start of both that the model heard. note: how
    it was made.
    """

    name: str
    real: NDArray[np.float32]
    generated: NDArray[np.float32]
    rate: int
    prompt: float = 0.0
    note: str = ""


def read_evaluations(folder: str | Path) -> list[Evaluation]:
    """Every evaluation saved in a folder, test first; none if it is missing.

    Raises:
        DataError: a file that is not an evaluation, by name.
    """
    order = {"test": 0, "val": 1}
    found = tables.read_evaluations(folder, Evaluation.from_dict)
    return sorted(found, key=lambda e: order.get(e.split, 2))


def write_report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    pairs: Sequence[Pair] = (),
    name: str | None = None,
) -> Path:
    """Draw a run folder into one HTML page, with its pictures and sounds beside it.

    Reads `metrics.csv`, `evaluation/*.json` and `model/`; what is missing is left out and said
    so. Writes `index.html`, `training.png`, and of each pair two WAV files and a PNG.

    Args:
        run: the run folder.
        out: the folder to write to; `report/` in the run folder by default.
        pairs: sounds to show.
        name: what the run is called; the folder's name by default.

    Returns:
        The path of the page.

    Raises:
        DataError: the folder holds nothing to report, or a file in it is damaged.
    """
    folder = Path(run)
    target = folder / REPORT if out is None else Path(out)
    metrics = folder / "metrics.csv"
    curves = read_curves(metrics) if metrics.is_file() else {}
    evaluations = read_evaluations(folder / EVALUATIONS)
    if not curves and not evaluations and not pairs:
        raise DataError(
            f"nothing to report in {folder}: it has no metrics.csv with measurements and no "
            f"{EVALUATIONS}/ with evaluations. Give the folder of a run"
        )
    target.mkdir(parents=True, exist_ok=True)
    title = html.escape(name or folder.resolve().name)
    parts = [f"<h1>{title}</h1>", *_model_part(folder)]
    if curves:
        parts += _training_part(curves, evaluations, target)
    for evaluation in evaluations:
        parts += _evaluation_part(evaluation)
    if not evaluations:
        parts.append("<p>No evaluation is saved in this run: <code>evaluate</code> adds one.</p>")
    if pairs:
        parts.append("<h2>Real and generated</h2>")
        for number, pair in enumerate(pairs):
            parts += _pair_part(pair, number, target)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    path = target / "index.html"
    with atomic_write(path, "w") as file:
        file.write(page)
    return path


def _model_part(folder: Path) -> list[str]:
    try:
        facts = describe(folder)
    except DataError:
        return ["<p>The run has exported no model yet.</p>"]
    rows = [
        ("parameters", f"{facts['parameters']:,}"),
        ("rate", f"{facts['rate']:,} Hz"),
        ("code", facts["code"]),
        ("mixers, fastest level first", ", ".join(facts["mixers"])),
        ("pools", ", ".join(map(str, facts["pools"]))),
        ("blocks a stage, width", f"{facts['n_layer']}, {facts['d_model']}"),
        ("labels", ", ".join(facts["labels"]) or "none"),
        ("speakers", ", ".join(facts["speakers"]) or "none"),
    ]
    return ["<h2>Model</h2>", _table(("", ""), rows)]


def _training_part(
    curves: dict[str, Curve], evaluations: Sequence[Evaluation], target: Path
) -> list[str]:
    floors = next((e.total.floors for e in evaluations if e.split == "val"), {})
    save_figure(curves_figure(curves, floors), target / "training.png")
    parts = ["<h2>Training</h2>", '<figure><img src="training.png" alt="training curves"></figure>']
    if "val/bits" in curves:
        steps, values = curves["val/bits"]
        best = min(range(len(values)), key=values.__getitem__)
        parts.append(
            f"<p>Best validation: {values[best]:.3f} bits per sample at step {steps[best]:,.0f}; "
            f"last step {max(max(x) for x, _ in curves.values()):,.0f}.</p>"
        )
    return parts


def _evaluation_part(evaluation: Evaluation) -> list[str]:
    parts = [f"<h2>Bits per sample, {html.escape(evaluation.split)}</h2>"]
    parts.append(f"<p>{html.escape(evaluation.headline())}.</p>")
    names = list(evaluation.total.floors)
    header = ("", "model", *names, "samples")

    def cells(row: BitsRow) -> tuple[str, ...]:
        floors = (f"{row.floors[n]:.3f}" for n in names)
        return (row.name, f"{row.bits:.3f}", *floors, f"{row.samples:,}")

    rows = [evaluation.total, *evaluation.by_label, *evaluation.by_speaker]
    if len(evaluation.files) <= 30:
        rows += evaluation.files
    parts.append(_table(header, [cells(row) for row in rows]))
    if evaluation.contexts:
        parts.append(
            f"<p>On the same {evaluation.context_targets:,} samples, by what was heard before:</p>"
        )
        table = [(f"{row.context:,} samples", f"{row.bits:.3f}") for row in evaluation.contexts]
        parts.append(_table(("context", "bits per sample"), table))
    return parts


def _pair_part(pair: Pair, number: int, target: Path) -> list[str]:
    stem = f"pair-{number:02d}"
    for kind, wave in (("real", pair.real), ("generated", pair.generated)):
        with WaveformWriter(target / f"{stem}-{kind}.wav", pair.rate) as writer:
            writer.write(wave)
    figure = pair_figure(pair.real, pair.generated, pair.rate, pair.prompt)
    save_figure(figure, target / f"{stem}.png")
    name = html.escape(pair.name)
    players = "".join(
        f'<div>{kind}<br><audio controls preload="none" src="{stem}-{kind}.wav"></audio></div>'
        for kind in ("real", "generated")
    )
    return [
        f"<h3>{name}</h3>",
        f"<p>{html.escape(pair.note)}</p>" if pair.note else "",
        f'<div class="pair">{players}</div>',
        f'<figure><img src="{stem}.png" alt="spectrograms of {name}"></figure>',
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    head = line(header, "th") if any(header) else ""
    return "<table>" + head + "".join(line(row, "td") for row in rows) + "</table>"
