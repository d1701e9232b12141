"""Divide a sample sheet's sequences into train, val and test, keeping near-duplicates together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from mambabio.containment import contained_pairs
from mambabio.duplicates import accession, circular_fingerprint, same_circle, strand_digest
from mambabio.sheet import SPLITS, Sample, SampleSheet, Split
from mambabio.store import Log, SequenceStore, StoredRecord, build_store, log_to_stderr
from mambacore.cache import atomic_write, default_cache_dir
from mambacore.errors import DataError, UsageError

SplitBy = Literal["record", "region"]
THRESHOLD = 0.9
_SHORTEST_CUT = 10_000  # a shorter record is not cut into regions


class Pair(NamedTuple):
    """Two records that are nearly the same.

    relation: "identical", "reverse complement", "rotated", "rotated reverse complement",
    "accession" or "contained". containment: shared part of the smaller one's 31-mers.
    one, other: ``file: record``.
    """

    relation: str
    containment: float
    one: str
    other: str


@dataclass(frozen=True)
class SplitResult:
    """What `split_sheet` wrote. sheet: the new sample sheet. duplicates: the list beside it.

    pairs: what stands in that list. counts: rows by (label, split).
    """

    sheet: Path
    duplicates: Path
    pairs: tuple[Pair, ...]
    counts: dict[tuple[str, Split], int]


def split_sheet(
    sheet: SampleSheet,
    out: str | os.PathLike[str],
    *,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    by: SplitBy = "record",
    seed: int = 0,
    threshold: float = THRESHOLD,
    cache_dir: str | os.PathLike[str] | None = None,
    log: Log = log_to_stderr,
) -> SplitResult:
    """Write a sample sheet with train, val and test rows; splits in the given one are ignored.

    ``by="record"`` deals whole records, label by label, in an order that depends on the seed and
    the sequences alone. ``by="region"`` cuts each record of at least 10,000 bases into a first
    part for training, one for validation and a last one for test, and deals shorter ones whole:
    for labels with few, long records.

    Records that are nearly the same go to the same side and are listed in
    ``OUT.duplicates.tsv`` (relation, containment, the two records): equal ones, also rotated or
    reverse-complemented; those under one accession; those that share more than `threshold` of the
    smaller one's canonical 31-mers. They are dealt whole, also by region.

    Args:
        sheet: from `load_samples`; rows with a region keep within it.
        out: the new sheet (TSV), its paths relative to it.
        fractions: of train, val and test; they add up to 1, and train is above 0.
        by: "record" or "region". seed: of the order. threshold: 0 to 1.
        cache_dir: for the sequences while they are compared; `default_cache_dir()` when None.
        log: called with counts, a line each.

    Raises:
        UsageError: fractions or another argument out of range.
        DataError: a label has too few records to give each split one.
    """
    _check(fractions, by, threshold)
    out = Path(out)
    plain = SampleSheet(
        tuple(Sample(s.label, s.path, "train", s.region, s.circular, s.row) for s in sheet.samples),
        sheet.labels,
        sheet.source,
    )
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    store = build_store(plain, folder, n_policy="keep", validation=0, log=log)
    records = store.records
    pairs = list(_pairs(store, threshold))
    groups = _groups(len(records), [(one, other) for one, other, _, _ in pairs])
    sides = _deal(store, groups, fractions, by, seed)
    rows = list(_rows(sheet, store, sides, fractions, out.parent))
    counts: dict[tuple[str, Split], int] = {}
    for row in rows:
        counts[row.label, row.split] = counts.get((row.label, row.split), 0) + 1
    named = tuple(
        Pair(relation, share, _name(store, records[one]), _name(store, records[other]))
        for one, other, relation, share in pairs
    )
    duplicates = out.with_name(out.name + ".duplicates.tsv")
    with atomic_write(duplicates, "w") as file:
        file.write("relation\tcontainment\trecord\tother\n")
        file.writelines(f"{p.relation}\t{p.containment:.4f}\t{p.one}\t{p.other}\n" for p in named)
    with atomic_write(out, "w") as file:
        file.write("label\tpath\tsplit\tregion\tcircular\n")
        file.writelines("\t".join(row) + "\n" for row in rows)
    log(f"{len(named):,} pairs of near-duplicates, each kept on one side: {duplicates}")
    return SplitResult(out, duplicates, named, counts)


class _Row(NamedTuple):
    label: str
    path: str
    split: Split
    region: str
    circular: str


_Side = Split | Literal["cut"]


def _check(fractions: Sequence[float], by: str, threshold: float) -> None:
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UsageError(
            f"fractions are {tuple(fractions)}; give three that add up to 1, for train, val and "
            "test, as 0.8 0.1 0.1"
        )
    if fractions[0] <= 0:
        raise UsageError("the fraction for train is 0: nothing would be left to learn from")
    if by not in get_args(SplitBy):
        raise UsageError(f"by is {by!r}; accepted are record and region")
    if not 0 < threshold <= 1:
        raise UsageError(f"threshold is {threshold}; give a part above 0, at most 1")


def _name(store: SequenceStore, record: StoredRecord) -> str:
    return f"{Path(store.inputs[record.source]['path']).name}: {record.name}"


def _pairs(store: SequenceStore, threshold: float) -> Iterator[tuple[int, int, str, float]]:
    """Places of two records, their relation and containment; each pair once."""
    found: set[tuple[int, int]] = set()
    for one, other, relation in _equal(store):
        found.add((one, other))
        yield one, other, relation, 1.0
    read: list[Callable[[], np.ndarray]] = [partial(store.ids, r) for r in store.records]
    lengths = [record.length for record in store.records]
    for one, other, share in contained_pairs(read, lengths, threshold):
        if (one, other) not in found:
            found.add((one, other))
            yield one, other, "contained", share
    by_name: dict[str, int] = {}
    for record in store.records:
        own = accession(record.name)
        if own is None:
            continue
        first = by_name.setdefault(own, record.index)
        if first != record.index and (first, record.index) not in found:
            yield first, record.index, "accession", float("nan")


def _equal(store: SequenceStore) -> Iterator[tuple[int, int, str]]:
    """Each record with the first one that it equals, if any."""
    alike: dict[tuple[int, int], list[int]] = {}
    for record in store.records:
        key = circular_fingerprint(store.ids(record))
        places = alike.setdefault(key, [])
        for first in places:
            relation = same_circle(store.ids(first), store.ids(record))
            if relation is not None:
                yield first, record.index, relation
                break
        else:
            places.append(record.index)


def _groups(number: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Connected records."""
    parent = list(range(number))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for one, other in pairs:
        parent[root(other)] = root(one)
    groups: dict[int, list[int]] = {}
    for place in range(number):
        groups.setdefault(root(place), []).append(place)
    return list(groups.values())


def _deal(
    store: SequenceStore,
    groups: Sequence[Sequence[int]],
    fractions: tuple[float, float, float],
    by: SplitBy,
    seed: int,
) -> list[_Side]:
    """Where each record goes; a group counts for the label of its first record."""
    sides: list[_Side] = ["train"] * len(store.records)
    by_label: dict[int, list[Sequence[int]]] = {}
    for group in groups:
        record = store.records[group[0]]
        if by == "region" and len(group) == 1 and record.length >= _SHORTEST_CUT:
            sides[group[0]] = "cut"
        else:
            by_label.setdefault(record.label_id, []).append(group)
    for label_id, own in by_label.items():
        cut = any(
            side == "cut" and record.label_id == label_id
            for side, record in zip(sides, store.records, strict=True)
        )
        order = sorted(own, key=lambda group: _rank(store, group, seed))
        total = sum(len(group) for group in own)
        asked: tuple[tuple[Split, float], ...] = (("test", fractions[2]), ("val", fractions[1]))
        for split, fraction in asked:
            wanted = fraction * total
            if fraction > 0 and not cut:
                wanted = max(1, round(wanted))
            taken = 0
            for group in list(order):
                # A group of near-duplicates may overshoot by a half of what was wanted.
                if taken < wanted and taken + len(group) <= max(1.5 * wanted, 1):
                    order.remove(group)
                    taken += len(group)
                    for place in group:
                        sides[place] = split
            if fraction > 0 and not taken and not cut:
                if len(order) < 2:
                    _too_few(store, label_id, len(own), split)
                smallest = min(order, key=len)
                order.remove(smallest)
                for place in smallest:
                    sides[place] = split
        if not order and not cut:
            _too_few(store, label_id, len(own), "train")
    return sides


def _too_few(store: SequenceStore, label_id: int, groups: int, split: str) -> None:
    raise DataError(
        f"label {store.labels[label_id]!r} has {groups} records (near-duplicates counted once), "
        f"too few to give {split} one. Divide by region instead, or set that fraction to 0"
    )


def _rank(store: SequenceStore, group: Sequence[int], seed: int) -> str:
    digests = sorted(strand_digest(store.ids(place)) for place in group)
    return hashlib.sha256(f"{seed}:{digests[0]}".encode()).hexdigest()


def _rows(
    sheet: SampleSheet,
    store: SequenceStore,
    sides: Sequence[_Side],
    fractions: tuple[float, float, float],
    folder: Path,
) -> Iterator[_Row]:
    """Rows of the new sheet; a file whose records all go to one side stays one row."""
    of_row: dict[tuple[str, int], list[StoredRecord]] = {}
    for record in store.records:
        key = (store.inputs[record.source]["path"], record.row)
        of_row.setdefault(key, []).append(record)
    for sample in sheet.samples:
        records = of_row.get((str(sample.path), sample.row), [])
        path = os.path.relpath(sample.path, folder.resolve())
        told = {True: "yes", False: "no", None: ""}[sample.circular]
        chosen: set[_Side] = {sides[record.index] for record in records}
        if len(chosen) == 1 and (side := chosen.pop()) != "cut":
            yield _Row(sample.label, path, side, sample.region or "", told)
            continue
        for record in records:
            side = sides[record.index]
            name = f"{{{record.name}}}" if ":" in record.name else record.name
            if side != "cut":
                yield _Row(sample.label, path, side, name, "yes" if record.circular else "")
                continue
            # The store keeps N, so its lengths are those of the file.
            edges = np.round(np.cumsum([0.0, *fractions]) * record.length).astype(int)
            places = (record.start + edges).tolist()
            for split, (start, end) in zip(SPLITS, pairwise(places), strict=True):
                if end > start:
                    yield _Row(sample.label, path, split, f"{name}:{start + 1}-{end}", "")
