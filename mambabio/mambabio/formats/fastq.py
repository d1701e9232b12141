"""FASTQ, streamed: reads of any length, on one line or several; qualities are only counted."""

from __future__ import annotations

from collections.abc import Iterator

from mambabio.errors import SequenceError
from mambabio.formats.lines import Cursor
from mambabio.formats.raw import RawRecord, parse_header

_BLANKS = b" \t\n"
_PLUS = ord("+")


def parse_fastq(blocks: Iterator[bytes], source: str) -> Iterator[RawRecord]:
    """Records of FASTQ text given in blocks with plain newlines.

    Raises `SequenceError` where a record is cut short or its quality has another length than its
    sequence.
    """
    cursor = Cursor(blocks, source)
    cursor.skip_blank()
    index = 0
    while (mark := cursor.peek()) == b"@":
        record = _short_record(cursor, index) or _long_record(cursor, index)
        yield record
        for _ in record.pieces:
            pass
        cursor.skip_blank()
        index += 1
    if mark or index == 0:
        raise SequenceError(
            f"{source}: line {cursor.line} is not FASTQ: a record starts with '@' and a name; "
            "is the quality before it as long as its sequence?"
        )


def _short_record(cursor: Cursor, index: int) -> RawRecord | None:
    """A record of four lines that lies within the block, as nearly all do; else None."""
    block, line = cursor.block, cursor.line
    header_end = block.find(b"\n", cursor.at)
    bases_end = block.find(b"\n", header_end + 1)
    plus_end = block.find(b"\n", bases_end + 1)
    end = block.find(b"\n", plus_end + 1)
    if min(header_end, bases_end, plus_end, end) < 0:
        return None
    sequence = block[header_end + 1 : bases_end]
    if block[bases_end + 1] != _PLUS or sequence.startswith(b"+"):
        return None
    name, description = parse_header(block[cursor.at + 1 : header_end], cursor.source, line)
    cursor.take(end + 1)
    record = RawRecord(name, description, iter([(sequence, line + 1)]), cursor.source, index)
    if end - plus_end - 1 != len(sequence):
        values = _letters(block[plus_end + 1 : end])
        _check_quality(record, _letters(sequence), values, line + 3, at_end=False)
    return record


def _long_record(cursor: Cursor, index: int) -> RawRecord:
    line = cursor.line
    cursor.take(cursor.at + 1)
    name, description = parse_header(cursor.header_line(), cursor.source, line)
    record = RawRecord(name, description, iter(()), cursor.source, index)
    record.pieces = _long_pieces(cursor, record)
    return record


def _long_pieces(cursor: Cursor, record: RawRecord) -> Iterator[tuple[bytes, int]]:
    bases = lines = 0
    for piece, line in cursor.pieces_until(b"+"):
        bases += _letters(piece)
        lines += piece.count(b"\n")
        yield piece, line
    if cursor.peek() != b"+":
        raise SequenceError(
            f"{record.where()}: the file ends before the record's '+' line: it is truncated, or "
            "not FASTQ; copy or download it again"
        )
    cursor.header_line()
    line = cursor.line
    values = 0
    while cursor.fill():
        end = cursor.block.find(b"\n", cursor.at)
        values += _letters(cursor.take(len(cursor.block) if end < 0 else end + 1))
        # A quality line may start with '@' or '+': only its length tells where it ends.
        if end >= 0 and (lines <= 1 or values >= bases):
            break
    _check_quality(record, bases, values, line, at_end=not cursor.fill())


def _check_quality(record: RawRecord, bases: int, values: int, line: int, at_end: bool) -> None:
    if bases == values:
        return
    cut = at_end and values < bases
    advice = "the file is truncated; copy or download it again" if cut else "repair the record"
    raise SequenceError(
        f"{record.where()}: the quality (line {line}) has {values:,} values for {bases:,} bases: "
        f"{advice}"
    )


def _letters(text: bytes) -> int:
    return len(text.translate(None, _BLANKS))
