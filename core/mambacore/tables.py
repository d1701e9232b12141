"""Tables that users write (TSV or CSV with a header, errors name the line), and figures of runs."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mambacore.errors import DataError

_T = TypeVar("_T")
Curve = tuple[list[float], list[float]]
"""Steps and values."""


def read_table(
    source: Path,
    required: Sequence[str],
    optional: Sequence[str] = (),
    *,
    error: type[DataError] = DataError,
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table: line number (the first line is 1) and the cells by column name.

    The separator is the tab where the header has one, else the comma. Empty lines and lines that
    start with ``#`` are skipped; column names are read without case; cells are stripped.

    Args:
        source: a UTF-8 file.
        required: columns that must be there.
        optional: columns that may be; others are passed on, too.
        error: what is raised.

    Raises:
        DataError (or `error`): not a text, no header, a column missing or twice, a row longer
            than the header, no rows.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.csv"
    >>> _ = path.write_text("Path,label\\n# none yet\\na.wav, dog\\n")
    >>> list(read_table(path, ["path"]))
    [(3, {'path': 'a.wav', 'label': 'dog'})]
    """
    names = _listed(required)
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(
            f"{source} is not a text table (byte {problem.start} is not UTF-8). Give a TSV or CSV "
            f"with {names}"
        ) from problem
    lines = text.splitlines()
    filled = (n for n, line in enumerate(lines) if line.strip() and not line.startswith("#"))
    first = next(filled, None)
    if first is None:
        raise error(f"{source} is empty. It needs a header with {names}")
    delimiter = "\t" if "\t" in lines[first] else ","
    reader = csv.reader(lines[first:], delimiter=delimiter)
    columns = [name.strip().lower() for name in next(reader)]
    for name in required:
        if name not in columns:
            also = f"; {', '.join(optional)} may stand beside them" if optional else ""
            raise error(
                f"{source} has no column {name!r}. Its header (line {first + 1}) has "
                f"{', '.join(map(repr, columns))}; it needs {names}{also}"
            )
    repeated = sorted({name for name in columns if name and columns.count(name) > 1})
    if repeated:
        raise error(f"{source}: the header has the column {repeated[0]!r} twice")
    rows = 0
    for cells in reader:
        row = first + reader.line_num
        if not any(cell.strip() for cell in cells) or cells[0].startswith("#"):
            continue
        if len(cells) > len(columns):
            raise error(
                f"{source}, line {row}: {len(cells)} fields, but the header has {len(columns)}"
            )
        rows += 1
        yield row, {n: cell.strip() for n, cell in zip(columns, cells, strict=False)}
    if rows == 0:
        raise error(f"{source} has a header but no rows")


def _listed(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"the column {names[0]}"
    return f"the columns {', '.join(names[:-1])} and {names[-1]}"


def read_curves(path: str | os.PathLike[str]) -> dict[str, Curve]:
    """Columns of a `metrics.csv` against its `step` column; empty cells and NaN are skipped.

    Raises:
        DataError: there is no `step` column, or a cell is no number.
    """
    curves: dict[str, Curve] = {}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is not None and "step" not in reader.fieldnames:
            raise DataError(f"{path} has no column 'step'; it holds {', '.join(reader.fieldnames)}")
        for number, row in enumerate(reader, start=2):
            for name, cell in row.items():
                if name in (None, "step") or not cell or not row["step"]:
                    continue
                try:
                    step, value = float(row["step"]), float(cell)
                except (TypeError, ValueError):
                    raise DataError(f"{path}, line {number}: {name} is {cell!r}") from None
                if math.isfinite(value):
                    xs, ys = curves.setdefault(name, ([], []))
                    xs.append(step)
                    ys.append(value)
    return curves


def read_evaluations(folder: str | os.PathLike[str], read: Callable[[Any], _T]) -> list[_T]:
    """Every JSON file of a folder in the order of names, as `read` takes its content; none if the
    folder is missing.

    Raises:
        DataError: a file that is no JSON, or that `read` refuses with a DataError, by name.

    >>> read_evaluations("nowhere", dict)
    []
    """
    found = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            found.append(read(json.loads(path.read_text(encoding="utf-8"))))
        except (DataError, ValueError) as error:
            raise DataError(f"{path}: {error}") from error
    return found
