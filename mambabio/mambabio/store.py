"""All sequences of a sample sheet as one memory-mapped file of token ids, with an index.

A store is two files in a cache folder: ``store-KEY.json`` (the index: labels, records, inputs,
what was dropped) and ``store-KEY-CONTENT.ids`` (one byte a base, records one after the other).
KEY stands for the sheet's rows and the options, so different settings live side by side.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mambabio.alphabet import Ids
from mambabio.sheet import SampleSheet, Split
from mambacore.errors import UsageError
from mambacore.inputs import InputFile

NPolicy = Literal["cut", "split", "keep"]
Log = Callable[[str], None]


@dataclass(frozen=True)
class StoredRecord:
    """A stretch of sequence that windows are drawn from: a record, or a piece of one.

    name: as in the file. label_id: place in the store's labels. split: its use. offset, length:
    its place in the store's ids, in bases. circular: windows may wrap around its end.
    row: line of the sheet. source: place of its file in ``inputs``. start: where it starts in
    its record, in bases as they are after N runs are cut. index: place among the store's records.
    """

    name: str
    label_id: int
    split: Split
    offset: int
    length: int
    circular: bool
    row: int
    source: int
    start: int
    index: int


@dataclass(frozen=True)
class SequenceStore:
    """Records of a sheet, readable at random. Build it with `build_store`; pickles by path.

    labels: class names; a record's label_id is a place in them. records: in the order of the
    sheet. inputs: files read, with SHA-256. dropped: reason to the names of what was left out.
    n_policy: as it was built. data: the file of ids. sheet: the sheet's path.
    """

    labels: tuple[str, ...]
    records: tuple[StoredRecord, ...]
    inputs: tuple[InputFile, ...]
    dropped: Mapping[str, tuple[str, ...]]
    n_policy: NPolicy
    data: Path
    sheet: str = ""

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("all_ids", None)
        return state

    @cached_property
    def all_ids(self) -> Ids:
        """Every base of the store, memory-mapped and read-only, shape (bases,)."""
        # A plain view: slicing np.memmap itself costs microseconds a time.
        return np.asarray(np.memmap(self.data, dtype=np.uint8, mode="r"))

    def ids(
        self, record: StoredRecord | int, start: int = 0, length: int | None = None
    ) -> NDArray[np.uint8]:
        """Bases of a record from `start` (0-based) on; to its end if `length` is None.

        On a circular record a stretch may run past the end and goes on at the origin, and
        ``start`` may be any integer.

        Raises:
            UsageError: the stretch leaves a linear record, or is longer than a circular one.
        """
        if isinstance(record, int):
            record = self.records[record]
        total = record.length
        if record.circular:
            start %= total
        length = total - start if length is None else length
        if (
            length < 0
            or start < 0
            or length > total
            or (start + length > total and not record.circular)
        ):
            raise UsageError(
                f"bases {start} to {start + length} were asked of record {record.name!r}, which "
                f"has {total}" + ("" if record.circular else " and is linear")
            )
        first = self.all_ids[record.offset + start : record.offset + min(start + length, total)]
        if start + length <= total:
            return first
        rest = self.all_ids[record.offset : record.offset + start + length - total]
        return np.concatenate([first, rest])

    def select(self, split: Split) -> tuple[StoredRecord, ...]:
        """The records of one split."""
        return tuple(record for record in self.records if record.split == split)

    def narrowed(self) -> SequenceStore:
        """The same records with only those labels that any of them has."""
        kept = sorted({record.label_id for record in self.records})
        place = {label_id: i for i, label_id in enumerate(kept)}
        records = (replace(r, label_id=place[r.label_id]) for r in self.records)
        return replace(self, labels=tuple(self.labels[i] for i in kept), records=tuple(records))

    @property
    def dropped_counts(self) -> dict[str, int]:
        """How many records were left out, by reason."""
        return {reason: len(names) for reason, names in self.dropped.items()}


def log_to_stderr(message: str) -> None:
    """The default log: a line on standard error."""
    import sys

    print(message, file=sys.stderr, flush=True)


def build_store(
    sheet: SampleSheet,
    cache_dir: str | os.PathLike[str],
    *,
    n_policy: NPolicy = "cut",
    validation: float = 0.1,
    seed: int = 0,
    log: Log = log_to_stderr,
) -> SequenceStore:
    """Read every sequence of a sheet into a store, or open the one made before.

    A store is used again when every input has the size and time, or else the size and SHA-256,
    that it had, and sheet and options are the same. It is written beside and renamed, under a
    lock, so two processes may build the same one and a crash leaves nothing half-written.

    What is left out is counted in ``dropped`` and said in the log:

    - records of N only, and with ``split`` pieces under 64 bases;
    - ``val`` and ``test`` records whose sequence (on either strand, N as the policy leaves them)
      is that of a training record, and ``test`` records that equal a ``val`` record;
    - ``test`` and ``val`` records that carry the accession of a training record (whole files
      only: with regions the accession does not tell).

    Without ``val`` rows a part of the training records is held out: `mambabio.holdout.hold_out`
    has the rule.

    Args:
        sheet: from `load_samples`.
        cache_dir: folder for the two files; made where missing.
        n_policy: ``cut`` removes N and joins what is left (so that runs of N, which differ
            between assemblies, give nothing away); ``split`` makes a piece of every stretch
            between them; ``keep`` leaves N as token 4.
        validation: part of each label's training records to hold out where the sheet has no
            ``val`` rows, from 0 (none) to below 1.
        seed: of that choice.
        log: called with progress and counts, a line each.

    Returns:
        The opened store.

    Raises:
        UsageError: an unknown n_policy, validation out of range.
        SequenceError: an input cannot be read or holds something else than nucleotides.
        DataError: nothing is left to train on though the sheet has training rows, or the cache
            folder cannot be written.

    Example:
        >>> import tempfile
        >>> from mambabio.sheet import load_samples
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.fa").write_text(">a1\\nACGTNNNACGT\\n")
        >>> _ = (folder / "b.fa").write_text(">b1\\nACGGACGG\\n")
        >>> store = build_store(load_samples(folder), folder / "cache", log=lambda line: None)
        >>> [(r.name, r.length, r.split) for r in store.records]
        [('a1', 8, 'train'), ('b1', 8, 'train')]
        >>> store.ids(0, start=2, length=4).tolist()
        [2, 3, 0, 1]
    """
    if n_policy not in get_args(NPolicy):
        raise UsageError(f"n_policy is {n_policy!r}; accepted are {', '.join(get_args(NPolicy))}")
    if not 0 <= validation < 1:
        raise UsageError(f"validation is {validation}; give a part from 0 to below 1, as 0.1")
    from mambabio.store_build import open_or_build

    options = {"n_policy": n_policy, "validation": float(validation), "seed": int(seed)}
    return open_or_build(sheet, Path(cache_dir), options, log)


def to_index(store: SequenceStore) -> str:
    """The index as JSON text; records as columns, which a million of them need."""
    names = [f.name for f in fields(StoredRecord) if f.name != "index"]
    columns = {name: [getattr(record, name) for record in store.records] for name in names}
    index = {
        "labels": store.labels,
        "inputs": store.inputs,
        "dropped": store.dropped,
        "n_policy": store.n_policy,
        "data": store.data.name,
        "sheet": store.sheet,
        "records": columns,
    }
    return json.dumps(index)


def from_index(text: str, folder: Path) -> SequenceStore:
    """Read what `to_index` wrote; the data file stands in `folder`."""
    index = json.loads(text)
    columns: dict[str, Sequence[Any]] = index["records"]
    rows = zip(*columns.values(), strict=True)
    records = tuple(
        StoredRecord(**dict(zip(columns, row, strict=True)), index=i) for i, row in enumerate(rows)
    )
    return SequenceStore(
        labels=tuple(index["labels"]),
        records=records,
        inputs=tuple(index["inputs"]),
        dropped={reason: tuple(names) for reason, names in index["dropped"].items()},
        n_policy=index["n_policy"],
        data=folder / index["data"],
        sheet=index["sheet"],
    )
