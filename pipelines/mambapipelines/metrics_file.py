"""metrics.csv: one row a measurement, columns that may grow, exact after a resume."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from mambacore.cache import atomic_write

Row = dict[str, float | int]


def read_rows(path: Path, until: int | None = None) -> list[Row]:
    """The complete rows of a metrics file, at most those with ``step <= until``.

    Empty cells are left out. A last line that a killed process left half-written is ignored.
    """
    rows: list[Row] = []
    if not path.is_file():
        return rows
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    lines = text[: text.rfind("\n") + 1].splitlines()
    reader = csv.reader(lines)
    header = next(reader, [])
    for cells in reader:
        if len(cells) != len(header):
            continue
        row = {name: _number(cell) for name, cell in zip(header, cells, strict=True) if cell != ""}
        if until is None or int(row.get("step", 0)) <= until:
            rows.append(row)
    return rows


def _number(cell: str) -> float | int:
    value = float(cell)
    return int(value) if value.is_integer() and "." not in cell and "e" not in cell else value


class MetricsFile:
    """Appends rows; a new column rewrites the file.

    Args:
        path: the file.
        until: rows with a larger step, left by a training that was killed, are dropped.
    """

    def __init__(self, path: str | os.PathLike[str], until: int = 0) -> None:
        self._path = Path(path)
        self._rows = read_rows(self._path, until)
        self._columns: list[str] = []
        for row in self._rows:
            self._add_columns(row)
        self._rewrite()

    def append(self, row: Row) -> None:
        """Write one row; cells that it does not name stay empty."""
        self._rows.append(row)
        if self._add_columns(row):
            self._rewrite()
        else:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                self._writer(file).writerow(row)

    def _add_columns(self, row: Row) -> bool:
        new = [name for name in row if name not in self._columns]
        self._columns += new
        return bool(new)

    def _writer(self, file) -> csv.DictWriter:
        return csv.DictWriter(file, self._columns, restval="", lineterminator="\n")

    def _rewrite(self) -> None:
        with atomic_write(self._path, "w") as file:
            if self._columns:
                writer = self._writer(file)
                writer.writeheader()
                writer.writerows(self._rows)
