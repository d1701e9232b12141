"""What a recipe is given and what it leaves: rows, one Markdown table, one figure, its records."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambacore.cache import atomic_write
from mambacore.errors import UsageError

from ..files import write_json

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """The outcome of a recipe.

    rows: every single measurement, one dictionary each, as results.csv holds them. table: the
    summary as text cells, the first row being the head. figure: drawn from the rows. details:
    whatever else results.json should hold.
    """

    rows: Sequence[Row]
    table: Sequence[Sequence[str]]
    figure: Figure
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def markdown(self) -> str:
        """The table in Markdown."""
        return markdown(self.table)


@dataclass
class Context:
    """Where a recipe runs.

    out: the folder to fill. device: what to compute on. data: folder of the public data, where the
    recipe reads some. say: takes a line of progress.
    """

    out: Path
    device: torch.device
    data: Path | None
    say: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Keep a measurement: results.csv always holds all there are, also after a break."""
        self.rows.append(row)
        write_csv(self.out / "results.csv", self.rows)

    def require_data(self, *parts: str) -> Path:
        """The folder of the public data.

        Raises:
            UsageError: `--data` was not given, or a part of it is missing.
        """
        if self.data is None:
            raise UsageError(f"name the folder that holds {', '.join(parts)}: --data DIR.")
        for part in parts:
            if not (self.data / part).exists():
                raise UsageError(
                    f"--data {self.data} has no {part}; docs/results.md lists sources."
                )
        return self.data

    def write_environment(self, values: Mapping[str, Any]) -> None:
        """Save versions, hardware, command and configuration."""
        write_json(self.out / "environment.json", values)

    def write(self, result: Result, seconds: float) -> None:
        """Save a result; results.json comes last."""
        write_csv(self.out / "results.csv", result.rows)
        with atomic_write(self.out / "figure.png") as file:
            # No version inside, so that equal results are equal files.
            result.figure.savefig(file, format="png", metadata={"Software": None})
        with atomic_write(self.out / "table.md", "w") as file:
            file.write(result.markdown + "\n")
        values = {"seconds": round(seconds, 1), **result.details, "rows": list(result.rows)}
        write_json(self.out / "results.json", values)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Rows as CSV; the columns are all keys, in the order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the head.

    >>> print(markdown([["a", "b"], ["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    head, *rows = table
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def power(length: int) -> str:
    """A length as a power of two where it is one.

    >>> power(4096), power(1000)
    ('2^12', '1,000')
    """
    exponent = length.bit_length() - 1
    return f"2^{exponent}" if length == 1 << exponent else f"{length:,}"
