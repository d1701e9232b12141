"""Making a sequence store: read, clean, hold out, drop duplicates, write, name, lock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from mambabio.alphabet import Ids, N
from mambabio.duplicates import accession, strand_digest
from mambabio.errors import SequenceError, SheetError
from mambabio.holdout import MINIMUM_TAIL, Unit, hold_out
from mambabio.indexed import IndexedFasta
from mambabio.records import Record, read_records
from mambabio.sheet import Sample, SampleSheet, Split
from mambabio.store import (
    Log,
    SequenceStore,
    StoredRecord,
    from_index,
    to_index,
)
from mambacore.cache import atomic_path, atomic_write, lock
from mambacore.errors import DataError
from mambacore.inputs import file_sha256, input_file

_VERSION = 1
_MINIMUM_PIECE = 64


@dataclass(frozen=True)
class _Entry:
    """A stored stretch and what the drops and the hold-out need to know of it."""

    record: StoredRecord
    digest: str  # of the whole source record, so that its pieces stay together
    accession: str | None
    origin: Split  # as the sheet says, whatever is held out
    unit: int  # running number of the source record


def open_or_build(
    sheet: SampleSheet, folder: Path, options: dict[str, Any], log: Log
) -> SequenceStore:
    """The store of a sheet, from the cache if it is current; see `mambabio.store.build_store`."""
    key = _key(sheet, options)
    with lock(folder / f"store-{key}.lock", log=log):
        index = folder / f"store-{key}.json"
        store = _current(index, log)
        return _build(sheet, index, options, log) if store is None else store


def _key(sheet: SampleSheet, options: dict[str, Any]) -> str:
    rows = [(s.label, str(s.path), s.split, s.region, s.circular, s.row) for s in sheet.samples]
    text = json.dumps([_VERSION, sheet.labels, rows, options], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _current(index: Path, log: Log) -> SequenceStore | None:
    """The store that an index describes, if its inputs are still what they were."""
    try:
        store = from_index(index.read_text(encoding="utf-8"), index.parent)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    bases = max((r.offset + r.length for r in store.records), default=0)
    if not store.data.is_file() or store.data.stat().st_size < bases:
        return None
    for entry in store.inputs:
        path = Path(entry["path"])
        status = path.stat() if path.is_file() else None
        if status is None or status.st_size != entry["bytes"]:
            return None
        if status.st_mtime_ns != entry["mtime_ns"] and file_sha256(path) != entry["sha256"]:
            log(f"{path} has changed since it was read: reading the sequences again")
            return None
    return store


def _build(sheet: SampleSheet, index: Path, options: dict[str, Any], log: Log) -> SequenceStore:
    paths = list(dict.fromkeys(sample.path for sample in sheet.samples))
    log(f"reading {len(paths)} sequence files of {sheet.source}")
    inputs = tuple(input_file(path) for path in paths)
    dropped: dict[str, list[str]] = {}
    # Named by the inputs' content: an index never meets the data of another version.
    content = hashlib.sha256("".join(entry["sha256"] for entry in inputs).encode()).hexdigest()
    data = index.parent / f"{index.stem}-{content[:16]}.ids"
    with atomic_path(data) as beside, open(beside, "wb") as out:
        writer = _Writer(out, options["n_policy"], dropped, index.parent)
        place = {path: i for i, path in enumerate(paths)}
        for sample in sheet.samples:
            writer.add(sample, place[sample.path], sheet.label_id(sample.label), log)
        writer.close()
        entries = writer.entries
        if not any(sample.split == "val" for sample in sheet.samples):
            entries = _hold_out(entries, options["validation"], options["seed"], len(sheet.labels))
        entries = _drop_known(entries, dropped)
        records = tuple(replace(e.record, index=i) for i, e in enumerate(entries))
        _check_something_left(sheet, records)
    store = SequenceStore(
        labels=sheet.labels,
        records=records,
        inputs=inputs,
        dropped={reason: tuple(names) for reason, names in dropped.items()},
        n_policy=options["n_policy"],
        data=data,
        sheet=str(sheet.source),
    )
    with atomic_write(index, "w") as file:
        file.write(to_index(store))
    for old in index.parent.glob(f"{index.stem}-*.ids"):
        if old != data:
            old.unlink(missing_ok=True)
    _log_counts(store, log)
    return store


class _Writer:
    """Appends cleaned sequences to the data file and keeps their entries."""

    def __init__(
        self, out: IO[bytes], n_policy: str, dropped: dict[str, list[str]], cache: Path
    ) -> None:
        self.entries: list[_Entry] = []
        self._out = out
        self._offset = 0
        self._units = 0
        self._n_policy = n_policy
        self._dropped = dropped
        self._cache = cache
        self._indexed: dict[Path, IndexedFasta] = {}

    def add(self, sample: Sample, source: int, label_id: int, log: Log) -> None:
        for record, start in self._records(sample, log):
            circular = record.circular if sample.circular is None else sample.circular
            pieces, whole = _clean(record.sequence, self._n_policy)
            if len(whole) == 0:
                self._drop("only N", sample, record.name)
                continue
            digest = strand_digest(whole)
            self._units += 1
            for begin, piece in pieces:
                if len(piece) < len(whole) and len(piece) < _MINIMUM_PIECE:
                    reason = f"piece between N runs under {_MINIMUM_PIECE} bases"
                    self._drop(reason, sample, record.name)
                    continue
                stored = StoredRecord(
                    name=record.name,
                    label_id=label_id,
                    split=sample.split or "train",
                    offset=self._offset,
                    length=len(piece),
                    circular=circular and len(pieces) == 1,
                    row=sample.row,
                    source=source,
                    start=start + begin,
                    index=-1,
                )
                known = accession(record.name) if sample.region is None else None
                self.entries.append(_Entry(stored, digest, known, stored.split, self._units))
                self._append(piece)

    def _records(self, sample: Sample, log: Log) -> Iterator[tuple[Record, int]]:
        """Records of a row, each with where it starts in its sequence."""
        if sample.region is None:
            for record in read_records(sample.path, notice=log):
                yield record, 0
            return
        try:
            if sample.path not in self._indexed:
                self._indexed[sample.path] = IndexedFasta(sample.path, self._cache, log=log)
            fasta = self._indexed[sample.path]
            name, start, end = fasta.resolve(sample.region)
            ids = fasta.fetch(name, start, end)
        except SequenceError as error:
            raise SheetError(f"line {sample.row} of the sheet, {sample.region}: {error}") from error
        yield Record(name=name, description=name, sequence=ids, source=str(sample.path)), start

    def close(self) -> None:
        """Close the indexed files."""
        for fasta in self._indexed.values():
            fasta.close()

    def _append(self, piece: Ids) -> None:
        np.ascontiguousarray(piece).tofile(self._out)
        self._offset += len(piece)

    def _drop(self, reason: str, sample: Sample, name: str) -> None:
        self._dropped.setdefault(reason, []).append(f"{sample.path.name}: {name}")


def _clean(ids: Ids, n_policy: str) -> tuple[list[tuple[int, Ids]], Ids]:
    """Pieces to store with their starts, and the whole record without N for its digest."""
    is_n = ids == N
    if not is_n.any():
        return [(0, ids)], ids
    whole = ids[~is_n]
    if n_policy == "cut":
        return [(0, whole)], whole
    if n_policy == "keep":
        return [(0, ids)], whole
    edges = np.flatnonzero(np.diff(np.concatenate([[True], is_n, [True]]).astype(np.int8)))
    bounds = edges.reshape(-1, 2).tolist()
    return [(begin, ids[begin:end]) for begin, end in bounds], whole


def _hold_out(entries: list[_Entry], fraction: float, seed: int, labels: int) -> list[_Entry]:
    """Training entries with some, or their ends, turned into validation."""
    result: list[_Entry] = []
    chosen: dict[int, int] = {}  # unit -> bases that stay in training
    for label_id in range(labels):
        units: dict[int, list[_Entry]] = {}
        for entry in entries:
            if entry.record.label_id == label_id and entry.record.split == "train":
                units.setdefault(entry.unit, []).append(entry)
        summary = [Unit(u[0].digest, sum(e.record.length for e in u)) for u in units.values()]
        numbers = list(units)
        whole, ends = hold_out(summary, fraction, f"{seed}:{label_id}")
        chosen |= {numbers[place]: 0 for place in whole}
        chosen |= {numbers[place]: keep for place, keep in ends.items()}
    left = dict(chosen)
    for entry in entries:
        if entry.record.split != "train" or entry.unit not in chosen:
            result.append(entry)
            continue
        keep = min(left[entry.unit], entry.record.length)
        left[entry.unit] -= keep
        result.extend(_cut(entry, keep))
    return result


def _cut(entry: _Entry, keep: int) -> Iterator[_Entry]:
    """The first `keep` bases for training and the rest for validation."""
    record = entry.record
    if keep == 0:
        yield replace(entry, record=replace(record, split="val"))
    elif keep == record.length or record.length - keep < MINIMUM_TAIL:
        yield entry
    else:
        # A circle cut in two is two lines: a window over the origin would join the two parts.
        first = replace(record, length=keep, circular=False)
        rest = replace(
            record,
            split="val",
            offset=record.offset + keep,
            length=record.length - keep,
            start=record.start + keep,
            circular=False,
        )
        yield replace(entry, record=first)
        yield replace(entry, record=rest)


def _drop_known(entries: list[_Entry], dropped: dict[str, list[str]]) -> list[_Entry]:
    """Without the val and test records that training knows, and test records that val knows."""
    digests: dict[Split, set[str]] = {"train": set(), "val": set()}
    accessions: dict[Split, set[str]] = {"train": set(), "val": set()}
    for entry in entries:
        if entry.origin != "test":
            digests[entry.origin].add(entry.digest)
            if entry.accession:
                accessions[entry.origin].add(entry.accession)
    earlier: dict[Split, tuple[Split, ...]] = {"train": (), "val": ("train",)}
    result: list[_Entry] = []
    for entry in entries:
        for other in earlier.get(entry.origin, ("train", "val")):
            if entry.digest in digests[other]:
                reason = f"{entry.origin} record identical to a {other} record"
            elif entry.accession in accessions[other]:
                reason = f"{entry.origin} record with the accession of a {other} record"
            else:
                continue
            dropped.setdefault(reason, []).append(entry.record.name)
            break
        else:
            result.append(entry)
    return result


def _check_something_left(sheet: SampleSheet, records: tuple[StoredRecord, ...]) -> None:
    present = {(record.label_id, record.split) for record in records}
    for sample in sheet.samples:
        wanted = (sheet.label_id(sample.label), sample.split or "train")
        if wanted[1] == "train" and wanted not in present:
            raise DataError(
                f"{sheet.source}: label {sample.label!r} has no sequence left to train on (N "
                f"aside) in {sample.path}"
            )
    if not records:
        raise DataError(f"{sheet.source}: no sequence is left in it (N aside)")


def _log_counts(store: SequenceStore, log: Log) -> None:
    parts = []
    for split in ("train", "val", "test"):
        records = store.select(split)
        if records:
            bases = sum(record.length for record in records)
            parts.append(f"{split} {len(records):,} records, {bases / 1e6:,.2f} Mb")
    log(f"{len(store.labels)} labels; " + "; ".join(parts))
    for reason, count in store.dropped_counts.items():
        log(f"dropped {count:,}: {reason}")
