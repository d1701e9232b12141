"""A cursor over blocks of text that knows its line: what the FASTA and FASTQ readers share."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from mambabio.formats.raw import MAX_HEADER_BYTES, header_too_long

_BLANK = re.compile(rb"\s*")


def plain_newlines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same text with "\\n" for every "\\r\\n" and lone "\\r", also across blocks.

    >>> list(plain_newlines(iter([b"a\\r", b"\\nb\\rc"])))
    [b'a', b'\\nb\\nc']
    """
    held = b""
    for block in blocks:
        if held:
            block, held = held + block, b""
        if b"\r" in block:
            if block.endswith(b"\r"):
                block, held = block[:-1], b"\r"
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if block:
            yield block
    if held:
        yield b"\n"


class Cursor:
    """A place in a stream of blocks.

    block, at: the current block and the offset in it.  line: 1-based line of that place.
    at_line_start: the byte before it was a newline, or there is none.
    """

    def __init__(self, blocks: Iterator[bytes], source: str) -> None:
        self._blocks = blocks
        self.source = source
        self.block = b""
        self.at = 0
        self.line = 1
        self.at_line_start = True

    def fill(self) -> bool:
        """Make sure that there is a byte to look at; False at the end."""
        while self.at >= len(self.block):
            block = next(self._blocks, None)
            if block is None:
                self.block, self.at = b"", 0
                return False
            self.block, self.at = block, 0
        return True

    def peek(self) -> bytes:
        """The next byte, or b"" at the end."""
        return self.block[self.at : self.at + 1] if self.fill() else b""

    def take(self, end: int) -> bytes:
        """The bytes up to offset `end` of the current block."""
        piece = self.block[self.at : end]
        if len(piece) < 512:
            self.line += piece.count(b"\n")
        else:
            text = np.frombuffer(piece, dtype=np.uint8)
            self.line += int(np.count_nonzero(text == ord("\n")))
        self.at = end
        if piece:
            self.at_line_start = piece.endswith(b"\n")
        return piece

    def skip_blank(self) -> None:
        """Go past blank lines and blanks."""
        while self.fill():
            blank = _BLANK.match(self.block, self.at)
            if blank is None or blank.end() == self.at:
                return
            self.take(blank.end())

    def header_line(self) -> bytes:
        """The rest of the line, without its newline; a header of sane length."""
        line = self.line
        parts: list[bytes] = []
        size = 0
        while self.fill():
            end = self.block.find(b"\n", self.at)
            part = self.take(len(self.block) if end < 0 else end + 1)
            parts.append(part)
            size += len(part)
            if size > MAX_HEADER_BYTES:
                raise header_too_long(self.source, line)
            if end >= 0:
                break
        return b"".join(parts).removesuffix(b"\n")

    def pieces_until(self, mark: bytes) -> Iterator[tuple[bytes, int]]:
        """Text with its line, up to a line that starts with `mark`, which is left to be read."""
        while self.fill():
            if self.at_line_start and self.block.startswith(mark, self.at):
                return
            found = self.block.find(b"\n" + mark, self.at)
            line = self.line
            yield self.take(len(self.block) if found < 0 else found + 1), line
