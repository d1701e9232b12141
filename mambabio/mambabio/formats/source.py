"""Opening: a file or standard input as blocks of plain bytes, decompressed and complete.

gzip is told by its magic bytes. Truncation is an error, also for a bgzip file cut between two
blocks, which other readers take for a whole one: bgzip ends with an empty 28-byte block.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Literal

from mambabio.errors import SequenceError

BLOCK_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"


@contextmanager
def open_blocks(path: str | os.PathLike[str]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Name of the source and its decompressed bytes, in blocks of about 1 MiB, none empty.

    path: a file, or "-" for standard input, named "stdin" in messages.
    Raises `SequenceError` for a file that is missing, unreadable, truncated or damaged; the
    latter two while reading.
    """
    name = os.fspath(path)
    if name == "-":
        yield "stdin", _checked(_decompressed(_read_blocks(sys.stdin.buffer), "stdin"), "stdin")
        return
    try:
        file = open(name, "rb", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise _cannot_read(name, error) from error
    except ValueError as error:
        raise SequenceError(f"{name!r} is not a file name: {error}") from error
    with file:
        yield name, _checked(_decompressed(_read_blocks(file), name), name)


def compression(path: str | os.PathLike[str]) -> Literal["plain", "gzip", "bgzip"]:
    """How a file is compressed, by content.  Raises `SequenceError` if it cannot be read."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            head = file.read(18)
    except OSError as error:
        raise _cannot_read(name, error) from error
    if not head.startswith(GZIP_MAGIC):
        return "plain"
    return "bgzip" if _is_bgzip(head) else "gzip"


def _is_bgzip(member: bytes) -> bool:
    return member[3:4] == b"\x04" and member[12:14] == b"BC"


def _cannot_read(name: str, error: OSError) -> SequenceError:
    if isinstance(error, FileNotFoundError):
        return SequenceError(f"{name}: file not found; check the path")
    if isinstance(error, IsADirectoryError):
        return SequenceError(f"{name}: is a folder; give a sequence file")
    return SequenceError(f"{name}: cannot be read: {error.strerror or error}")


def _read_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Full blocks also from a pipe, whose reads come short."""
    while True:
        parts: list[bytes] = []
        wanted = BLOCK_BYTES
        while wanted and (part := file.read(wanted)):
            parts.append(part)
            wanted -= len(part)
        if not parts:
            return
        yield parts[0] if len(parts) == 1 else b"".join(parts)


def _checked(blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
    try:
        yield from blocks
    except OSError as error:
        raise _cannot_read(name, error) from error


def _decompressed(blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
    first = next(blocks, b"")
    if first.startswith(GZIP_MAGIC):
        yield from _gunzip(_chain(first, blocks), name)
    elif first:
        yield from _chain(first, blocks)


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _gunzip(blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """All members of a gzip stream, in blocks of at least `BLOCK_BYTES` but the last."""
    held: list[bytes] = []
    held_bytes = 0
    for part in _members(blocks, name):
        held.append(part)
        held_bytes += len(part)
        if held_bytes >= BLOCK_BYTES:
            yield b"".join(held)
            held, held_bytes = [], 0
    if held:
        yield b"".join(held)


def _members(blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
    data = next(blocks)
    while True:
        while len(data) < 18 and (more := next(blocks, b"")):
            data += more
        if not data.startswith(GZIP_MAGIC):
            raise SequenceError(
                f"{name}: after the compressed data comes something that is not gzip; the file "
                "is damaged, or was joined with an uncompressed one"
            )
        is_bgzip = _is_bgzip(data)
        out_bytes = 0
        inflate = zlib.decompressobj(wbits=31)
        while not inflate.eof:
            if not data:
                data = next(blocks, b"")
                if not data:
                    raise SequenceError(
                        f"{name}: the gzip data end too early: the file is truncated; "
                        "copy or download it again"
                    )
            try:
                out = inflate.decompress(data, BLOCK_BYTES)
            except zlib.error as error:
                raise SequenceError(
                    f"{name}: the gzip data are damaged ({error}); copy or download it again"
                ) from error
            data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            out_bytes += len(out)
            if out:
                yield out
        data = data or next(blocks, b"")
        # gzip pads with zeros on tapes and some block devices; gunzip takes them too.
        while data and not data.strip(b"\0"):
            data = next(blocks, b"")
        if not data:
            if is_bgzip and out_bytes:
                raise SequenceError(
                    f"{name}: the bgzip file lacks its end block: it was cut between two blocks "
                    "and is truncated; copy or download it again"
                )
            return
