"""The sample sheet: which file holds sequence of which label, and what it is used for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, NoReturn, cast, get_args

from mambabio.errors import SheetError
from mambabio.indexed import parse_region
from mambacore.tables import read_table

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
_REQUIRED = ("label", "path")
_OPTIONAL = ("split", "region", "circular")
_TRUE = {"1", "true", "yes", "y", "circular"}
_FALSE = {"0", "false", "no", "n", "linear"}
_SEQUENCE_SUFFIXES = frozenset(
    [
        ".fa",
        ".fasta",
        ".fas",
        ".fna",
        ".ffn",
        ".fq",
        ".fastq",
        ".gb",
        ".gbk",
        ".gbff",
        ".genbank",
        ".embl",
    ]
)
_COMPRESSED_SUFFIXES = frozenset({".gz", ".bgz", ".bgzf"})


@dataclass(frozen=True)
class Sample:
    """One row: a file, or a region of it, with its label.

    label: the class. path: the resolved file. split: ``train``, ``val``, ``test``, or None where
    the sheet leaves it open (it then trains). region: samtools form (``chr1:1-500``, 1-based and
    closed), or None for the whole file. circular: True or False where the sheet says so, None
    where the file decides (GenBank topology). row: the line of the sheet, the header being line
    1; 0 for a folder.
    """

    label: str
    path: Path
    split: Split | None = None
    region: str | None = None
    circular: bool | None = None
    row: int = 0


@dataclass(frozen=True)
class SampleSheet:
    """Checked samples. labels: sorted names; a label's place in them is its id.

    source: the sheet's file or the folder, as messages name it.
    """

    samples: tuple[Sample, ...]
    labels: tuple[str, ...]
    source: Path

    def label_id(self, label: str) -> int:
        """The id of a label: its place among the sorted names."""
        return self.labels.index(label)


def load_samples(
    path: str | os.PathLike[str],
    *,
    labels: Sequence[str] | None = None,
    labelled: bool = True,
) -> SampleSheet:
    """Read and check a sample sheet (TSV or CSV), or a folder of sequence files.

    A sheet has a header with ``label`` and ``path`` and may have ``split`` (train, val, test;
    empty means train), ``region`` (``name:from-to``, 1-based, closed) and ``circular`` (yes or
    no); further columns are ignored. The separator is the tab where the header has one, else the
    comma. Paths are relative to the sheet. Empty lines and lines that start with ``#`` are
    skipped.

    In a folder, each sub-folder that holds sequence files is a label; without such sub-folders
    each sequence file is one, named by the part before its first dot (``human.chr1.fa.gz`` is
    ``human``). Sub-folders named ``train``, ``val`` and ``test`` are splits, each such a folder.

    Args:
        path: the sheet or the folder.
        labels: names that are known already, a trained model's; they become the sheet's labels,
            in that order, and another label is an error. By default the labels are the sorted
            names of the sheet, where a label of ``val`` or ``test`` rows must also have
            training rows, if any row is for training.
        labelled: False where labels do not matter (language modelling): `path` may then also be
            one sequence file, the sheet needs no labels (a file's name up to its first dot stands
            for a missing one), and ``val`` and ``test`` may have labels of their own.

    Returns:
        The sheet, with resolved paths.

    Raises:
        SheetError: no such sheet, a missing column, an unknown split or label, an empty label, a
            missing file, the same sequence in two rows; the message names sheet, line and value.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.fa").write_text(">a\\nACGT\\n")
        >>> _ = (folder / "b.fa").write_text(">b\\nACGG\\n")
        >>> _ = (folder / "sheet.tsv").write_text("label\\tpath\\nape\\ta.fa\\nbat\\tb.fa\\n")
        >>> load_samples(folder / "sheet.tsv").labels
        ('ape', 'bat')
        >>> [s.label for s in load_samples(folder).samples]
        ['a', 'b']
    """
    source = Path(path)
    if source.is_dir():
        samples = list(_from_folder(source))
    elif not labelled and source.is_file() and is_sequence_file(source):
        samples = [Sample(label=_name_of(source), path=source.resolve())]
    elif source.is_file():
        samples = list(_from_table(source, labelled))
    else:
        raise SheetError(
            f"no such sample sheet or folder: {source}. Give a TSV or CSV with the columns "
            "label and path, or a folder whose files or sub-folders are the labels"
        )
    _check_sequences_are_disjoint(source, samples)
    return SampleSheet(tuple(samples), _labels(source, samples, labels, labelled), source)


def _from_table(source: Path, labelled: bool) -> Iterator[Sample]:
    required = _REQUIRED if labelled else ("path",)
    optional = _OPTIONAL if labelled else ("label", *_OPTIONAL)
    for row, values in read_table(source, required, optional, error=SheetError):
        yield _sample(source, row, values, labelled)


def _sample(source: Path, row: int, values: dict[str, str], labelled: bool) -> Sample:
    where = f"{source}, line {row}"
    label, path = values.get("label", ""), values.get("path", "")
    if not labelled and not label and path:
        label = _name_of(Path(path))
    if not label:
        raise SheetError(f"{where}: the label is empty")
    if not path:
        raise SheetError(f"{where}: the path is empty (label {label!r})")
    split = values.get("split", "").lower()
    if split and split not in SPLITS:
        raise SheetError(
            f"{where}: unknown split {values['split']!r}. Accepted are {', '.join(SPLITS)}, or "
            "nothing, which means train"
        )
    circular = values.get("circular", "").lower()
    if circular and circular not in _TRUE | _FALSE:
        raise SheetError(
            f"{where}: circular is {values['circular']!r}. Accepted are yes and no, or nothing, "
            "which leaves it to the file"
        )
    file = (source.parent / Path(path).expanduser()).resolve()
    if not file.is_file():
        kind = "is a folder, not a file" if file.is_dir() else "does not exist"
        raise SheetError(f"{where}: {path!r} {kind} (looked for {file}; label {label!r})")
    region = values.get("region") or None
    if region is not None:
        try:
            parse_region(region)
        except ValueError as error:
            raise SheetError(f"{where}: {error}") from error
    if region is not None and circular in _TRUE and parse_region(region).end is not None:
        raise SheetError(f"{where}: region {region} is a part, so it cannot be circular")
    return Sample(
        label=label,
        path=file,
        split=cast(Split, split) if split else None,
        region=region,
        circular=(circular in _TRUE) if circular else None,
        row=row,
    )


def is_sequence_file(path: Path) -> bool:
    """Whether the name is that of a sequence file, compressed or not.

    >>> is_sequence_file(Path("human.chr1.fa.gz")), is_sequence_file(Path("README.md"))
    (True, False)
    """
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED_SUFFIXES:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] in _SEQUENCE_SUFFIXES


def _from_folder(source: Path) -> Iterator[Sample]:
    folders = [p for p in sorted(source.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    splits = [p for p in folders if p.name in SPLITS]
    if splits and any(p.name == "train" for p in splits):
        others = [p.name for p in folders if p not in splits]
        if others:
            raise SheetError(
                f"{source} has the split folders {', '.join(p.name for p in splits)} and beside "
                f"them {', '.join(others)}. Keep only splits, or write a sample sheet"
            )
        for folder in splits:
            yield from _labelled_folder(folder, cast(Split, folder.name))
    else:
        yield from _labelled_folder(source, None)


def _labelled_folder(source: Path, split: Split | None) -> Iterator[Sample]:
    files = sorted(_sequence_files(source))
    nested = {
        folder.name: sorted(_sequence_files(folder))
        for folder in sorted(source.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    nested = {name: inside for name, inside in nested.items() if inside}
    if files and nested:
        raise SheetError(
            f"{source} holds sequence files ({files[0].name}, ...) and sub-folders with some "
            f"({next(iter(nested))}, ...), so the labels are unclear. Write a sample sheet"
        )
    if not files and not nested:
        raise SheetError(
            f"{source} holds no sequence files, nor do its sub-folders. Known endings are "
            f"{' '.join(sorted(_SEQUENCE_SUFFIXES))}, plain or .gz"
        )
    if files:
        nested = {}
        for file in files:
            nested.setdefault(_name_of(file), []).append(file)
    for label, inside in nested.items():
        for file in inside:
            yield Sample(label=label, path=file.resolve(), split=split)


def _name_of(file: Path) -> str:
    return file.name.split(".")[0]


def _sequence_files(folder: Path) -> Iterator[Path]:
    for file in folder.iterdir():
        if file.is_file() and not file.name.startswith(".") and is_sequence_file(file):
            yield file


def _where(source: Path, sample: Sample) -> str:
    return f"{source}, line {sample.row}" if sample.row else f"{source} ({sample.path.name})"


def _check_sequences_are_disjoint(source: Path, samples: Iterable[Sample]) -> None:
    by_path: dict[Path, list[Sample]] = {}
    for sample in samples:
        by_path.setdefault(sample.path, []).append(sample)
    for rows in by_path.values():
        if len(rows) == 1:
            continue
        whole = next((sample for sample in rows if sample.region is None), None)
        if whole is not None:
            _refuse(source, *sorted((whole, next(s for s in rows if s is not whole)), key=_row))
        placed = sorted(((*_extent(sample), sample) for sample in rows), key=lambda x: x[:3])
        for (name, _, end, one), (other_name, start, _, other) in pairwise(placed):
            if name == other_name and start < end:
                _refuse(source, *sorted((one, other), key=_row))


def _row(sample: Sample) -> int:
    return sample.row


def _extent(sample: Sample) -> tuple[str, int, float]:
    assert sample.region is not None
    name, start, end = parse_region(sample.region)
    return name, start, math.inf if end is None else end


def _refuse(source: Path, first: Sample, second: Sample) -> NoReturn:
    raise SheetError(
        f"{_where(source, second)}: {second.path} was listed before{_line(first)} as "
        f"{_role(first)}, here as {_role(second)}. One sequence may stand in one row only; to "
        "split a file, give each row a region that overlaps no other"
    )


def _line(sample: Sample) -> str:
    return f" (line {sample.row})" if sample.row else ""


def _role(sample: Sample) -> str:
    region = f", region {sample.region}" if sample.region else ""
    return f"{sample.split or 'train'} of {sample.label!r}{region}"


def _labels(
    source: Path, samples: Sequence[Sample], known: Sequence[str] | None, labelled: bool
) -> tuple[str, ...]:
    if known is not None:
        for sample in samples:
            if sample.label not in known:
                raise SheetError(
                    f"{_where(source, sample)}: unknown label {sample.label!r}. The model knows "
                    f"{', '.join(known)}"
                )
        return tuple(known)
    trained = {s.label for s in samples if s.split in (None, "train")}
    if trained and labelled:
        for sample in samples:
            if sample.label not in trained:
                raise SheetError(
                    f"{_where(source, sample)}: label {sample.label!r} stands in {sample.split} "
                    f"but has no training rows. Labels with training rows are "
                    f"{', '.join(sorted(trained))}"
                )
    return tuple(sorted({s.label for s in samples}))
