"""Sample sheets of the public DNA data, in the layout of their sources."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from mambabio.alphabet import decode
from mambabio.records import Record, read_records
from mambabio.sheet import is_sequence_file
from mambacore.cache import atomic_write
from mambacore.errors import DataError

TRAIN_REGION, TEST_REGION = "ENm001", "ENm002"
_TEST_SHARE = 0.3
_PLACE = re.compile(r"^(?P<name>[^:]+):(?P<start>\d+)-(?P<end>\d+)")
_SLICE = re.compile(r"^(?P<chromosome>\w+?)_(?P<start>\d+)_\d+$")

Row = tuple[str, Path, str, str]


def encode_sheet(folder: Path, labels: Sequence[str], out: Path) -> Path:
    """Train on ENm001, test on ENm002; the label is the file name's first part.

    Args:
        folder: holds ENm001 and ENm002, one FASTA file a species and region.
        labels: species to take; all that ENm001 has when empty. One without ENm002 only trains.
        out: where samples.tsv is written.

    Validation is the store's: the last part of every sequence, or of labels in many pieces (draft
    assemblies) that part of the pieces.

    Raises:
        DataError: a species has no file in ENm001.
    """
    train, test = (_by_label(folder / name) for name in (TRAIN_REGION, TEST_REGION))
    missing = [label for label in labels if label not in train]
    if missing:
        raise DataError(
            f"{folder / TRAIN_REGION} has no file of {missing[0]!r}; it has {', '.join(train)}"
        )
    rows: list[Row] = []
    for label in labels or sorted(train):
        rows += [(label, path, "train", "") for path in train[label]]
        rows += [(label, path, "test", "") for path in test.get(label, ())]
    return _write(out / "samples.tsv", rows)


def mtdna_sheet(folder: Path, labels: Sequence[str], out: Path) -> Path:
    """Whole circular genomes: train on vertebrates, test on new_vertebrates_test.

    The arguments and errors are those of `encode_sheet`. Test records that training knows are
    dropped when the store is built.
    """
    train, test = (_by_label(folder / name) for name in ("vertebrates", "new_vertebrates_test"))
    rows: list[Row] = []
    for label in labels or sorted(train):
        if label not in train or label not in test:
            raise DataError(f"{folder} has no training and test file of {label!r}")
        rows += [(label, path, "train", "yes") for path in train[label]]
        rows += [(label, path, "test", "yes") for path in test[label]]
    return _write(out / "samples.tsv", rows)


def great_apes_sheet(folder: Path, labels: Sequence[str], out: Path) -> Path:
    """Nuclear contigs: the end of chromosome 6, 30 % of its bases, is held out for the test.

    Contigs are ordered by the coordinates in their names; those that are not placed on chromosome
    6 train. Each label's contigs are written to out/sequences in two files.
    """
    files = _by_label(folder)
    target = out / "sequences"
    target.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for label in labels or sorted(files):
        if label not in files:
            raise DataError(f"{folder} has no file of {label!r}; it has {', '.join(files)}")
        records = [record for path in files[label] for record in read_records(path)]
        placed = [(place[1], r) for r in records if (place := place_of(r.name)) and place[0] == "6"]
        placed.sort(key=lambda item: item[0])
        total, seen = sum(len(r) for _, r in placed), 0
        test = set()
        for _, record in placed:
            seen += len(record)
            if seen > (1 - _TEST_SHARE) * total:
                test.add(id(record))
        for split in ("train", "test"):
            chosen = [r for r in records if (id(r) in test) == (split == "test")]
            path = target / f"{label}.{split}.fa"
            _write_fasta(path, chosen)
            rows.append((label, path, split, ""))
    return _write(out / "samples.tsv", rows)


def place_of(name: str) -> tuple[str, int] | None:
    """Chromosome and start of ``species|contig|assembly|chr6_31576282_490979:465926-487615(+)``."""
    match = _PLACE.match(name.split("|")[-1])
    if match is None:
        return None
    chromosome, start = match["name"], int(match["start"])
    if piece := _SLICE.match(chromosome):
        chromosome, start = piece["chromosome"], int(piece["start"]) + start
    return chromosome.removeprefix("chr"), start


def _by_label(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_sequence_file(path):
            files.setdefault(path.name.split(".")[0], []).append(path)
    return files


def _write(path: Path, rows: Iterable[Row]) -> Path:
    lines = ["label\tpath\tsplit\tcircular"]
    lines += [
        f"{label}\t{file.resolve()}\t{split}\t{circle}" for label, file, split, circle in rows
    ]
    with atomic_write(path, "w") as file:
        file.write("\n".join(lines) + "\n")
    return path


def _write_fasta(path: Path, records: Iterable[Record]) -> None:
    with atomic_write(path, "w") as file:
        for record in records:
            file.write(f">{record.name}\n{decode(record.sequence)}\n")
