"""FASTA, streamed: constant memory however long a record is, and every error has its place."""

from __future__ import annotations

from collections.abc import Iterator

from mambabio.errors import SequenceError
from mambabio.formats.lines import Cursor
from mambabio.formats.raw import RawRecord, parse_header


def parse_fasta(blocks: Iterator[bytes], source: str) -> Iterator[RawRecord]:
    """Records of FASTA text given in blocks with plain newlines.

    The pieces of a record are to be read before the next record; what is left is skipped.
    """
    cursor = Cursor(blocks, source)
    cursor.skip_blank()
    index = 0
    while (mark := cursor.peek()) == b">":
        line = cursor.line
        cursor.take(cursor.at + 1)
        name, description = parse_header(cursor.header_line(), source, line)
        pieces = cursor.pieces_until(b">")
        yield RawRecord(name, description, pieces, source, index)
        for _ in pieces:
            pass
        index += 1
    if mark or index == 0:
        raise SequenceError(
            f"{source}: line {cursor.line} is not FASTA: a record starts with '>' and a name"
        )
