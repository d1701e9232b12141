"""Which recordings there are, and what they are used for: a sheet, a folder or a pattern."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from mambaaudio.check import SUFFIXES
from mambacore.errors import DataError
from mambacore.tables import read_table

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
_OPTIONAL = ("label", "speaker", "split")


@dataclass(frozen=True)
class Sample:
    """One recording.

    path: the resolved file. label, speaker: names, or None. split: ``train``, ``val``, ``test``,
    or None where the sheet leaves it open (it then trains). row: line of the sheet, the header
    being line 1; 0 for a folder.
    """

    path: Path
    label: str | None = None
    speaker: str | None = None
    split: Split | None = None
    row: int = 0


@dataclass(frozen=True)
class SampleSheet:
    """Checked samples. labels, speakers: sorted names; number 0 means none, so that the first
    name's number is 1. source: the sheet, folder or pattern, as messages name it."""

    samples: tuple[Sample, ...]
    labels: tuple[str, ...]
    speakers: tuple[str, ...]
    source: Path

    def label_id(self, label: str | None) -> int:
        """The number of a label: 0 for None, else its place among the names, from 1 on."""
        return 0 if label is None else self.labels.index(label) + 1

    def speaker_id(self, speaker: str | None) -> int:
        """The number of a speaker; 0 for None and for one that the training does not know."""
        known = speaker is not None and speaker in self.speakers
        return self.speakers.index(speaker) + 1 if known else 0


def load_samples(
    path: str | os.PathLike[str],
    *,
    labels: Sequence[str] | None = None,
    speakers: Sequence[str] | None = None,
) -> SampleSheet:
    """Read and check a sample sheet (TSV or CSV), a folder of sound files, or a glob pattern.

    A sheet has a header with ``path`` and may have ``label``, ``speaker`` and ``split`` (train,
    val, test; empty means train); further columns are ignored. Paths are relative to the sheet.

    A folder stands for every sound file below it, without labels; where it has a sub-folder
    ``train``, the sub-folders ``train``, ``val`` and ``test`` are the splits. A pattern with
    ``*``, ``?`` or ``[`` stands for the files that it matches (``**`` for any folders).

    Args:
        path: the sheet, the folder or the pattern.
        labels: names that are known already, a trained model's; they become the sheet's labels,
            in that order, and another label is an error. By default the sorted names of the
            sheet, where a label of ``val`` or ``test`` rows must also have training rows, if any
            row is for training.
        speakers: likewise; a speaker that is not among them is no error, but counts as unknown.
            By default the sorted speakers of the training rows (of all rows where none trains).

    Raises:
        DataError: no such sheet, a missing column, an unknown split or label, a missing file, a
            file in two rows; the message names sheet, line and value.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.wav").write_bytes(b"")
        >>> _ = (folder / "sheet.tsv").write_text("path\\tlabel\\na.wav\\tdog\\n")
        >>> load_samples(folder / "sheet.tsv").labels
        ('dog',)
        >>> [s.path.name for s in load_samples(folder).samples]
        ['a.wav']
    """
    source = Path(path).expanduser()
    if source.is_dir():
        samples = list(_from_folder(source))
    elif source.is_file() and is_sound_file(source):
        samples = [Sample(source.resolve())]
    elif source.is_file():
        samples = [
            _sample(source, row, values) for row, values in read_table(source, ("path",), _OPTIONAL)
        ]
    elif glob.has_magic(str(source)):
        samples = _from_pattern(source)
    else:
        raise DataError(
            f"no such sample sheet, folder or pattern: {source}. Give a TSV or CSV with the column "
            "path (and perhaps label, speaker, split), or a folder of sound files"
        )
    _check_files_are_distinct(source, samples)
    return SampleSheet(
        tuple(samples),
        _labels(source, samples, labels),
        tuple(speakers) if speakers is not None else _speakers(samples),
        source,
    )


def _sample(source: Path, row: int, values: dict[str, str]) -> Sample:
    where = f"{source}, line {row}"
    path = values.get("path", "")
    if not path:
        raise DataError(f"{where}: the path is empty")
    split = values.get("split", "").lower()
    if split and split not in SPLITS:
        raise DataError(
            f"{where}: unknown split {values['split']!r}. Accepted are {', '.join(SPLITS)}, or "
            "nothing, which means train"
        )
    file = (source.parent / Path(path).expanduser()).resolve()
    if not file.is_file():
        kind = "is a folder, not a file" if file.is_dir() else "does not exist"
        raise DataError(f"{where}: {path!r} {kind} (looked for {file})")
    return Sample(
        path=file,
        label=values.get("label") or None,
        speaker=values.get("speaker") or None,
        split=cast(Split, split) if split else None,
        row=row,
    )


def _from_folder(source: Path) -> Iterator[Sample]:
    splits: tuple[Split | None, ...] = (None,)
    if (source / "train").is_dir():
        splits = tuple(split for split in SPLITS if (source / split).is_dir())
        others = [
            file for file in _sound_files(source) if file.relative_to(source).parts[0] not in splits
        ]
        if others:
            raise DataError(
                f"{source} has the split folders {', '.join(map(str, splits))} and, outside them, "
                f"{others[0].relative_to(source)}. Keep only splits, or write a sample sheet"
            )
    found = False
    for split in splits:
        for file in _sound_files(source / split if split else source):
            found = True
            yield Sample(file.resolve(), split=split)
    if not found:
        raise DataError(
            f"{source}: no sound files below it (looked for {' '.join(sorted(SUFFIXES))})"
        )


def is_sound_file(path: Path) -> bool:
    """Whether the name is that of a sound file.

    >>> is_sound_file(Path("a.FLAC")), is_sound_file(Path("sheet.tsv"))
    (True, False)
    """
    return path.suffix.lower() in SUFFIXES


def _sound_files(folder: Path) -> list[Path]:
    files = (p for p in folder.rglob("*") if is_sound_file(p) and p.is_file())
    return sorted(p for p in files if not p.name.startswith("."))


def _from_pattern(source: Path) -> list[Sample]:
    matched = sorted(Path(name) for name in glob.glob(str(source), recursive=True))
    files = [path.resolve() for path in matched if is_sound_file(path) and path.is_file()]
    if not files:
        raise DataError(
            f"{source} matches no sound file (it matches {len(matched)} other paths); known "
            f"endings are {' '.join(sorted(SUFFIXES))}"
        )
    return [Sample(path) for path in files]


def _where(source: Path, sample: Sample) -> str:
    return f"{source}, line {sample.row}" if sample.row else f"{source} ({sample.path.name})"


def _check_files_are_distinct(source: Path, samples: Sequence[Sample]) -> None:
    seen: dict[Path, Sample] = {}
    for sample in samples:
        first = seen.setdefault(sample.path, sample)
        if first is not sample:
            before = f" (line {first.row})" if first.row else ""
            raise DataError(
                f"{_where(source, sample)}: {sample.path} was listed before{before}. A recording "
                "may stand in one row only"
            )


def _trains(sample: Sample) -> bool:
    return sample.split in (None, "train")


def _labels(
    source: Path, samples: Sequence[Sample], known: Sequence[str] | None
) -> tuple[str, ...]:
    if known is not None:
        for sample in samples:
            if sample.label is not None and sample.label not in known:
                knows = f"knows {', '.join(known)}" if known else "was trained without labels"
                raise DataError(
                    f"{_where(source, sample)}: unknown label {sample.label!r}. The model {knows}"
                )
        return tuple(known)
    trained = {sample.label for sample in samples if _trains(sample)}
    if trained:
        for sample in samples:
            if sample.label not in trained and sample.label is not None:
                names = ", ".join(sorted(name for name in trained if name)) or "none"
                raise DataError(
                    f"{_where(source, sample)}: label {sample.label!r} stands in {sample.split} "
                    f"but has no training rows. Labels with training rows are {names}"
                )
    return tuple(sorted({s.label for s in samples if s.label is not None}))


def _speakers(samples: Sequence[Sample]) -> tuple[str, ...]:
    trained = [sample for sample in samples if _trains(sample)] or samples
    return tuple(sorted({s.speaker for s in trained if s.speaker is not None}))
