"""An evaluation as a table for a terminal, or as Markdown tables for a page."""

from __future__ import annotations

from collections.abc import Sequence

from mambabio.evaluation import Evaluation


def summary_rows(e: Evaluation) -> list[tuple[str, str, str, str]]:
    """(who, macro accuracy, its interval, accuracy) of the model and what it stands beside."""
    low, high = e.interval.low, e.interval.high
    rows = [
        ("this model", f"{e.macro_accuracy:.3f}", f"{low:.3f} to {high:.3f}", f"{e.accuracy:.3f}")
    ]
    for b in e.baselines:
        best = " (the baseline)" if b == e.baseline else ""
        rows.append((f"{b.name}{best}", f"{b.macro_accuracy:.3f}", "", f"{b.accuracy:.3f}"))
    if e.n_only is not None:
        rows.append(("runs of N alone, before the cut", f"{e.n_only:.3f}", "", ""))
    present = sum(c.support > 0 for c in e.per_class)
    rows.append(("always the largest class", f"{1 / present:.3f}", "", f"{e.majority:.3f}"))
    rows.append(("chance", f"{e.chance:.3f}", "", f"{e.chance:.3f}"))
    return rows


def class_rows(e: Evaluation) -> list[tuple[str, str, str, str, str]]:
    """(class, windows, precision, recall, F1), a row a class."""
    return [
        (
            c.label,
            f"{c.support:,}",
            f"{c.precision:.3f}",
            "-" if c.support == 0 else f"{c.recall:.3f}",
            f"{c.f1:.3f}",
        )
        for c in e.per_class
    ]


def remarks(e: Evaluation) -> list[str]:
    """What a reader must know to judge the figures, a sentence each."""
    said = []
    if e.advantage is not None and e.baseline is not None:
        gap, i = e.advantage
        verdict = "beats" if i.low > 0 else "falls short of" if i.high < 0 else "is level with"
        said.append(
            f"The model {verdict} the k-mer baseline ({e.baseline.name}): "
            f"{gap:+.3f} macro accuracy, {i.low:+.3f} to {i.high:+.3f}."
        )
    if e.no_baseline:
        said.append(f"No k-mer baseline: {e.no_baseline}.")
    said.append(
        f"Intervals: {e.interval.confidence:.0%} bootstrap over {e.interval.groups:,} genomes "
        f"(50 kb blocks of long ones), {e.interval.smallest:,} in the smallest class."
    )
    if e.interval.smallest < 5:
        said.append("A class with so few of them varies too little: the interval is too narrow.")
    if e.window != e.trained_window:
        way = (
            f"the answers of pieces of {e.piece:,} are averaged"
            if e.piece
            else "each is read whole"
        )
        said.append(f"The model was trained on windows of {e.trained_window:,} bases; {way}.")
    said.append(
        f"Macro F1 {e.f1:.3f}, Matthews correlation {e.mcc:.3f}, expected calibration error "
        f"{e.reliability.ece:.3f} at temperature {e.temperature:.2f}."
    )
    subset = e.excluding_near_duplicates
    if subset is not None:
        beside = ""
        if subset.baseline_macro_accuracy is not None:
            beside = f" (k-mer baseline {subset.baseline_macro_accuracy:.3f})"
        said.append(
            f"Without {e.records - subset.records:,} records that share over 90 % of their "
            f"31-mers with training records: macro accuracy {subset.macro_accuracy:.3f}, "
            f"{subset.interval.low:.3f} to {subset.interval.high:.3f}{beside}."
        )
    if e.dropped:
        what = "; ".join(f"{count:,} x {reason}" for reason, count in e.dropped.items())
        said.append(f"Left out: {what}.")
    return said


def heading(e: Evaluation) -> str:
    """What was scored."""
    strands = ", both strands averaged" if e.both_strands else ""
    return (
        f"{e.split}: {e.windows:,} windows of {e.window:,} bases from {e.records:,} records, "
        f"{len(e.labels)} classes{strands}"
    )


SUMMARY_HEADER = ("", "macro accuracy", "interval", "accuracy")
CLASS_HEADER = ("class", "windows", "precision", "recall", "F1")


def evaluation_text(e: Evaluation) -> str:
    """The figures as aligned columns, then the remarks."""
    return "\n".join(
        [
            heading(e),
            "",
            _columns(SUMMARY_HEADER, summary_rows(e)),
            "",
            _columns(CLASS_HEADER, class_rows(e)),
            "",
            *remarks(e),
        ]
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, the rest to the right."""
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|" + "|".join(["---"] + ["--:"] * (len(header) - 1)) + "|")
    lines += ["| " + " | ".join(x.replace("|", "\\|") for x in row) + " |" for row in rows]
    return "\n".join(lines)


def _columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    )
