"""What every format's reader hands on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mambabio.errors import SequenceError

MAX_HEADER_BYTES = 1 << 20


@dataclass(eq=False)
class RawRecord:
    """A header and the text that follows it.

    pieces: (text, line) pairs: letters and line breaks ("\\n" only), and the 1-based line on
        which the piece starts (0 where the format does not say).
    has_case: upper and lower case carry a soft mask.
    """

    name: str
    description: str
    pieces: Iterator[tuple[bytes, int]]
    source: str
    index: int
    circular: bool = False
    has_case: bool = True

    def where(self) -> str:
        """File and record, as errors name them."""
        return f"{self.source}: record {self.name!r}"


def parse_header(header: bytes, source: str, line: int) -> tuple[str, str]:
    """Name (first word) and description (all) of a header line without its mark.

    >>> parse_header(b"chr1 Homo sapiens", "x.fa", 1)
    ('chr1', 'chr1 Homo sapiens')
    """
    description = header.decode("utf-8", errors="replace").strip()
    if not description:
        raise SequenceError(
            f"{source}: the record on line {line} has no name: write one after its mark, "
            "as in '>name'"
        )
    return description.split(None, 1)[0], description


def header_too_long(source: str, line: int) -> SequenceError:
    """A header without end: no sequence file."""
    return SequenceError(
        f"{source}: the header on line {line} is longer than {MAX_HEADER_BYTES:,} bytes; "
        "is the file damaged, or not FASTA or FASTQ?"
    )
