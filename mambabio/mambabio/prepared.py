"""Sequences prepared once for many trainings: a folder that stands wherever a sample sheet does.

Three files: ``store.ids`` (one byte a base, records one after the other, memory-mapped when read),
``store.json`` (its index, see `mambabio.store`) and ``prepared.json`` (how it was made). Nothing
in them names a place outside the folder that is read again, so the folder may be moved to another
machine and the sequence files be left behind.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mambabio.errors import SheetError
from mambabio.sheet import SampleSheet, load_samples
from mambabio.store import Log, NPolicy, SequenceStore, build_store, from_index, to_index
from mambacore.cache import replace_folder
from mambacore.errors import DataError, UsageError
from mambacore.inputs import file_sha256

_FORMAT = "mambabio-prepared-1"
_NOTES, _INDEX, _IDS = "prepared.json", "store.json", "store.ids"


@dataclass(frozen=True)
class Prepared:
    """A prepared folder. store: its sequences. validation, seed: of what was held out."""

    store: SequenceStore
    source: Path
    validation: float
    seed: int

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self.store.labels


def prepare(
    sheet: SampleSheet,
    folder: str | os.PathLike[str],
    *,
    n_policy: NPolicy = "split",
    validation: float = 0.1,
    seed: int = 0,
    log: Log,
) -> Prepared:
    """Read every sequence of a sheet into a folder that trainings read instead of the sheet.

    Args:
        sheet: from `load_samples`.
        folder: new or empty, or an earlier preparation, which is replaced when the new one is
            whole.
        n_policy, validation, seed: see `mambabio.store.build_store`; they hold for every training
            on the folder.
        log: called with progress and counts, a line each.

    Raises:
        UsageError: the folder holds something else.
        DataError: it cannot be written, or a sequence cannot be read.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp())
        >>> _ = (place / "a.fa").write_text(">a1\\nACGTNNNACGT\\n")
        >>> sheet = load_samples(place / "a.fa", labelled=False)
        >>> made = prepare(sheet, place / "p", n_policy="cut", log=lambda line: None)
        >>> (place / "a.fa").unlink()
        >>> open_prepared(place / "p").store.ids(0).tolist()
        [0, 1, 2, 3, 0, 1, 2, 3]
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file; name a folder for the prepared sequences")
    if target.is_dir() and not is_prepared(target) and any(target.iterdir()):
        raise UsageError(
            f"{target} is not empty and holds no prepared sequences; name a new folder"
        )
    with replace_folder(target) as beside:
        work = beside / "work"
        store = build_store(
            sheet, work, n_policy=n_policy, validation=validation, seed=seed, log=log
        )
        os.replace(store.data, beside / _IDS)
        shutil.rmtree(work)
        store = dataclasses.replace(store, data=beside / _IDS)
        (beside / _INDEX).write_text(to_index(store), encoding="utf-8")
        notes = {
            "format": _FORMAT,
            "bases": (beside / _IDS).stat().st_size,
            "sha256": file_sha256(beside / _IDS),
            "n_policy": n_policy,
            "validation": validation,
            "seed": seed,
        }
        (beside / _NOTES).write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
    return open_prepared(target)


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder that `prepare` made."""
    return (Path(path) / _NOTES).is_file()


def open_prepared(folder: str | os.PathLike[str]) -> Prepared:
    """Open a prepared folder; its sequences are not read.

    Raises:
        DataError: it is damaged, incomplete, or of another version.
    """
    place = Path(folder)
    try:
        notes: dict[str, Any] = json.loads((place / _NOTES).read_text(encoding="utf-8"))
        if notes.get("format") != _FORMAT:
            raise DataError(
                f"{place} was prepared by another version (format {notes.get('format')!r}, here "
                f"{_FORMAT!r}). Run `mambabio prepare` again"
            )
        store = from_index((place / _INDEX).read_text(encoding="utf-8"), place)
        size = store.data.stat().st_size
        if size != notes["bases"]:
            raise DataError(
                f"{store.data} has {size:,} bytes, {_NOTES} says {notes['bases']:,}: it is "
                "damaged. Copy it again, or run `mambabio prepare`"
            )
        return Prepared(store, place, float(notes["validation"]), int(notes["seed"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place} is no whole folder of prepared sequences: {error}") from error


def load_sequences(
    path: str | os.PathLike[str], *, labels: Sequence[str] | None = None, labelled: bool = True
) -> SampleSheet | Prepared:
    """A prepared folder, or whatever `mambabio.sheet.load_samples` reads, with its arguments.

    Raises:
        SheetError: see there; or a label of the prepared folder is not among `labels`.
    """
    if not is_prepared(path):
        return load_samples(path, labels=labels, labelled=labelled)
    prepared = open_prepared(path)
    unknown = [label for label in prepared.labels if labels is not None and label not in labels]
    if unknown and labels is not None:
        raise SheetError(
            f"{path}: unknown label {unknown[0]!r}. The model knows {', '.join(labels)}"
        )
    return prepared


def store_of(
    source: SampleSheet | Prepared,
    cache: str | os.PathLike[str],
    *,
    n_policy: NPolicy,
    validation: float,
    seed: int,
    log: Log,
) -> SequenceStore:
    """The store of a sheet (built in `cache`), or the prepared one.

    What is held out of prepared sequences was decided when they were prepared; `validation` and
    `seed` are then not used, and the log says so where they differ.

    Raises:
        UsageError: prepared with another n_policy.
        SequenceError, DataError: see `build_store`.
    """
    if isinstance(source, SampleSheet):
        return build_store(
            source, cache, n_policy=n_policy, validation=validation, seed=seed, log=log
        )
    has = source.store.n_policy
    if has != n_policy:
        raise UsageError(
            f"{source.source} was prepared with n_policy {has!r}, and {n_policy!r} is asked for: "
            f"give --data.n_policy {has}, or prepare it with --n-policy {n_policy}"
        )
    if source.store.select("val") and (source.validation, source.seed) != (validation, seed):
        log(f"{source.source}: validation records are those of the preparation")
    return source.store
