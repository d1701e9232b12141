"""Sequence records, read whole or streamed in chunks, from any file that holds nucleotides.

FASTA and FASTQ stream in constant memory whatever the length of a record; GenBank, EMBL and the
rarer formats come through Biopython one whole record at a time. gzip and bgzip are told by their
content, `-` is standard input.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from typing import Literal, TypeAlias, get_args

import numpy as np

from mambabio.alphabet import (
    CODE_BAD,
    CODE_BLANK,
    CODE_URACIL,
    VOCAB_SIZE,
    Ids,
    Mask,
    N,
    T,
    code,
    describe_letter,
    explain_letter,
)
from mambabio.errors import SequenceError
from mambabio.formats import RawRecord, open_raw_records
from mambacore.errors import UsageError

SoftMask: TypeAlias = Literal["drop", "keep", "n"]
"""What lower case means: nothing ("drop"), a mask beside the sequence ("keep"), or N ("n")."""

Notice: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Record:
    """One sequence.

    name: first word of the header.  description: the whole header without its mark.
    sequence: uint8 token ids (length,).  circular: from GenBank's or EMBL's topology.
    source: the path as given, or "stdin".  index: 0-based place in the source.
    mask: (length,) True where the file has lower case; only with ``soft_mask="keep"``.
    uracil: the record was written with U, read as T.
    """

    name: str
    description: str
    sequence: Ids
    circular: bool = False
    source: str = ""
    index: int = 0
    mask: Mask | None = None
    uracil: bool = False

    def __len__(self) -> int:
        return len(self.sequence)


@dataclass(eq=False)
class RecordStream:
    """One sequence whose letters arrive in chunks.

    name, description, circular, source, index: as in `Record`.
    chunks: iterator of uint8 token ids (at most chunk_bytes,); every chunk but the last has
        exactly that length, wherever the record stands in its file. Read it before asking for
        the next record, which checks what is left and throws it away; reading on after that is a
        RuntimeError.
    """

    name: str
    description: str
    circular: bool
    chunks: Iterator[Ids]
    source: str = ""
    index: int = 0


def read_records(
    path: str | PathLike[str],
    *,
    format: str | None = None,
    soft_mask: SoftMask = "drop",
    notice: Notice | None = None,
) -> Iterator[Record]:
    """Read a file's records one by one, each whole.

    path: a file, or "-" for standard input; gzip and bgzip are recognised by content.
    format: "fasta", "fastq", "genbank", "embl" or another name that Biopython's SeqIO knows;
        None recognises it by content.
    soft_mask: what lower-case letters mean, see `SoftMask`. Formats other than FASTA and FASTQ
        have no soft mask.
    notice: called with a sentence at the first U of the file; `warnings.warn` by default.
    Raises `SequenceError` that names file, record, position (1-based within the record) and
    line for whatever cannot be used: a missing, empty, binary or truncated file, a record
    without sequence, a letter that is no nucleotide.

    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "x.fa")
    >>> with open(path, "w") as file: _ = file.write(">chrM Homo sapiens\\nACGT\\nAC\\n")
    >>> [(r.name, r.description, len(r)) for r in read_records(path)]
    [('chrM', 'chrM Homo sapiens', 6)]
    """
    _check_soft_mask(soft_mask, get_args(SoftMask))
    return _read(path, format, soft_mask, notice)


def _read(
    path: str | PathLike[str], format: str | None, soft_mask: SoftMask, notice: Notice | None
) -> Iterator[Record]:
    for raw, pieces in read_pieces(path, format, soft_mask, notice):
        letters, mask = bytearray(), bytearray()
        for ids, masked in pieces:
            letters += ids.data
            if masked is not None:
                mask += masked.view(np.uint8).data
        yield Record(
            raw.name,
            raw.description,
            np.frombuffer(letters, dtype=np.uint8),
            circular=raw.circular,
            source=raw.source,
            index=raw.index,
            mask=np.frombuffer(mask, dtype=np.bool_) if soft_mask == "keep" else None,
            uracil=pieces.uracil,
        )


def stream_records(
    path: str | PathLike[str],
    *,
    chunk_bytes: int = 1 << 20,
    format: str | None = None,
    soft_mask: Literal["drop", "n"] = "drop",
    notice: Notice | None = None,
) -> Iterator[RecordStream]:
    """Read a file's records one by one, each as a stream of chunks, in constant memory.

    Arguments and errors as for `read_records`; an error within a record is raised by its
    ``chunks``. A kept mask needs the whole record (`read_records`).
    chunk_bytes: bases in a chunk, at least 1.

    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "x.fa")
    >>> with open(path, "w") as file: _ = file.write(">a\\nACGT\\nAC\\n")
    >>> [[c.tolist() for c in r.chunks] for r in stream_records(path, chunk_bytes=4)]
    [[[0, 1, 2, 3], [0, 1]]]
    """
    _check_soft_mask(soft_mask, ("drop", "n"))
    if chunk_bytes < 1:
        raise UsageError(f"chunk_bytes is {chunk_bytes}; give a whole number of bases, at least 1")
    return _stream(path, chunk_bytes, format, soft_mask, notice)


def _stream(
    path: str | PathLike[str],
    chunk_bytes: int,
    format: str | None,
    soft_mask: SoftMask,
    notice: Notice | None,
) -> Iterator[RecordStream]:
    for raw, pieces in read_pieces(path, format, soft_mask, notice):
        chunks = _Chunks(_exact_chunks((ids for ids, _ in pieces), chunk_bytes), raw.name)
        yield RecordStream(
            raw.name, raw.description, raw.circular, chunks, source=raw.source, index=raw.index
        )
        chunks.skip()


def read_pieces(
    path: str | PathLike[str],
    format: str | None = None,
    soft_mask: SoftMask = "drop",
    notice: Notice | None = None,
) -> Iterator[tuple[RawRecord, Pieces]]:
    """Raw records with their encoded pieces as they come: what the other readers are made of."""
    uracil = _UracilNotice(notice)
    with open_raw_records(path, format) as records:
        for raw in records:
            yield raw, Pieces(raw, soft_mask, uracil)


class _Chunks(Iterator[Ids]):
    """Chunks that are gone, rather than seem to be none, once the file has been read past them."""

    def __init__(self, chunks: Iterator[Ids], name: str) -> None:
        self._chunks = chunks
        self._name = name
        self._skipped = False

    def __next__(self) -> Ids:
        if self._skipped:
            raise RuntimeError(
                f"the chunks of record {self._name!r} are gone: read a record's chunks before "
                "asking stream_records for the next record"
            )
        return next(self._chunks)

    def skip(self) -> None:
        for _ in self._chunks:
            self._skipped = True


def _exact_chunks(pieces: Iterator[Ids], size: int) -> Iterator[Ids]:
    """The same letters cut every `size`, so that chunks do not depend on lines and blocks."""
    held: list[Ids] = []
    count = 0
    for piece in pieces:
        start = 0
        while count + len(piece) - start >= size:
            end = start + size - count
            part = piece[start:end]
            yield np.concatenate([*held, part]) if held else part.copy()
            held, count, start = [], 0, end
        if start < len(piece):
            held.append(piece[start:])
            count += len(piece) - start
    if held:
        yield np.concatenate(held)


@dataclass
class _UracilNotice:
    """Says once a file that U was read as T."""

    notice: Notice | None
    said: bool = False

    def __call__(self, raw: RawRecord) -> None:
        if self.said:
            return
        self.said = True
        message = f"{raw.source}: record {raw.name!r} is written with U (RNA): U is read as T"
        if self.notice is None:
            warnings.warn(message, stacklevel=2)
        else:
            self.notice(message)


@dataclass
class Pieces:
    """Iterates over a raw record's pieces as (ids, mask or None), and judges its letters."""

    raw: RawRecord
    soft_mask: SoftMask
    notice: _UracilNotice
    uracil: bool = False
    length: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[tuple[Ids, Mask | None]]:
        for piece, line in self.raw.pieces:
            letters = piece.replace(b"\n", b"")
            ids = code(letters)
            if ids.size and ids.max() >= VOCAB_SIZE:
                letters, ids = self._judge(piece, line, letters, ids)
            if not ids.size:
                continue
            mask = None
            if self.soft_mask != "drop" and self.raw.has_case:
                mask = (np.frombuffer(letters, dtype=np.uint8) & 0x20).astype(np.bool_)
                if self.soft_mask == "n":
                    ids[mask] = N
                    mask = None
            elif self.soft_mask == "keep":
                mask = np.zeros(len(ids), dtype=np.bool_)
            self.length += len(ids)
            yield ids, mask
        if self.length == 0:
            raise SequenceError(
                f"{self.raw.where()} has no sequence: its header is followed by nothing; "
                "remove the record or complete the file"
            )

    def _judge(self, piece: bytes, line: int, letters: bytes, ids: Ids) -> tuple[bytes, Ids]:
        """Drop blanks, read U as T, refuse the rest."""
        if (ids == CODE_BLANK).any():
            letters = letters.translate(None, b" \t\n\r\v\f")
            ids = code(letters)
        bad = ids == CODE_BAD
        if bad.any():
            at = int(bad.argmax())
            text = np.frombuffer(piece, dtype=np.uint8)
            offset = int((code(piece) == CODE_BAD).argmax())
            lines = int(np.count_nonzero(text[:offset] == ord("\n")))
            place = f"position {self.length + at + 1}"
            if line:
                place += f" (line {line + lines})"
            raise SequenceError(
                f"{self.raw.where()}: {describe_letter(letters, at)} at {place} "
                f"{explain_letter(letters, at)}",
                position=self.length + at,
            )
        uracil = ids == CODE_URACIL
        if uracil.any():
            ids[uracil] = T
            self.uracil = True
            self.notice(self.raw)
        return letters, ids


def _check_soft_mask(given: str, accepted: tuple[str, ...]) -> None:
    if given not in accepted:
        raise UsageError(f"soft_mask is {given!r}; accepted are {', '.join(map(repr, accepted))}")
