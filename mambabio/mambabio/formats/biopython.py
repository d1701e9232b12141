"""GenBank, EMBL and the rarer formats through Biopython, one whole record at a time."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any

from mambabio.errors import SequenceError
from mambabio.formats.raw import RawRecord
from mambacore.errors import UsageError

_PIECE = 1 << 20
_MOST_ENDS = 1000
_BINARY = {"abi", "abi-trim", "gck", "nib", "sff", "sff-trim", "snapgene", "twobit", "xdna"}


def format_names() -> tuple[str, ...]:
    """Names of the formats that Biopython reads."""
    from Bio import AlignIO, SeqIO

    return tuple(sorted({*SeqIO._FormatToIterator, *AlignIO._FormatToIterator}))


def check_format(format: str) -> None:
    """Raise `UsageError` for a name that Biopython does not know."""
    if format not in (names := format_names()):
        raise UsageError(f"format is {format!r}; accepted are {', '.join(names)}")


def parse_biopython(blocks: Iterator[bytes], format: str, source: str) -> Iterator[RawRecord]:
    """Records of a format that `check_format` accepts, from its bytes in blocks.

    A circular topology is kept. Raises `SequenceError` for what Biopython cannot read, for a
    sequence of another length than its record says (truncation), and for proteins.
    """
    from Bio import SeqIO

    handle: Any
    if format in _BINARY:
        handle = io.BytesIO(b"".join(blocks))
    else:
        raw = io.BufferedReader(_BlockReader(blocks, source))
        handle = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace")
    last = "at its start"
    index = 0
    records: Iterator[Any] = iter(())
    while True:
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                if index == 0:
                    records = iter(SeqIO.parse(handle, format))
                record = next(records, None)
        except SequenceError:
            raise
        except Exception as error:
            # Biopython's parsers raise whatever the malformed text makes them stumble over.
            said_by_parser = " ".join(str(error).split()) or type(error).__name__
            raise SequenceError(
                f"{source}: cannot be read as {format} ({last}): {said_by_parser}"
            ) from error
        for warning in said:
            _pass_on(warning.message, source)
        if record is None:
            break
        raw_record = _raw_record(record, format, source, index)
        yield raw_record
        last = f"after record {raw_record.name!r}"
        index += 1
    if index == 0:
        raise SequenceError(f"{source}: holds no {format} record; is it another format?")


def _pass_on(warning: Warning | str, source: str) -> None:
    text = str(warning)
    if text.startswith("Expected sequence length"):
        raise SequenceError(f"{source}: {text} The file is truncated or damaged; get it again")
    if text.startswith("Premature end"):
        raise SequenceError(f"{source}: {text}: the file is truncated; get it again")
    warnings.warn(f"{source}: {text}", stacklevel=2)


def _raw_record(record: Any, format: str, source: str, index: int) -> RawRecord:
    from Bio.Seq import UndefinedSequenceError

    known = [x for x in (record.id, record.name) if x and not x.startswith("<unknown") and x != "."]
    name = known[0].split(None, 1)[0] if known else f"record_{index + 1}"
    description = record.description or ""
    if description.startswith("<unknown"):
        description = ""
    if record.annotations.get("molecule_type") == "protein":
        raise SequenceError(f"{source}: record {name!r} is a protein; give the nucleotide sequence")
    try:
        letters = bytes(record.seq) if record.seq is not None else b""
    except UndefinedSequenceError as error:
        raise SequenceError(
            f"{source}: record {name!r} has no sequence in the file (only its length or its "
            f"parts); download the full {format} record"
        ) from error
    pieces = ((letters[i : i + _PIECE], 0) for i in range(0, len(letters), _PIECE))
    circular = record.annotations.get("topology") == "circular"
    return RawRecord(
        name,
        description if description.startswith(name) else f"{name} {description}".rstrip(),
        pieces,
        source,
        index,
        circular=circular,
        has_case=False,
    )


class _BlockReader(io.RawIOBase):
    """Blocks of bytes as a file that can be read once."""

    def __init__(self, blocks: Iterator[bytes], source: str) -> None:
        self._blocks = blocks
        self._source = source
        self._rest = memoryview(b"")
        self._ends_seen = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._blocks, b""))
        if not self._rest:
            # Some of Biopython's parsers wait at the end for a line that never comes.
            self._ends_seen += 1
            if self._ends_seen > _MOST_ENDS:
                raise SequenceError(f"{self._source}: the file ends too early: it is truncated")
        part = self._rest[: len(buffer)]
        buffer[: len(part)] = part
        self._rest = self._rest[len(part) :]
        return len(part)
