"""Recognising a file's format by what it holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mambabio.formats.fasta import parse_fasta
from mambabio.formats.lines import plain_newlines
from mambabio.formats.raw import RawRecord
from mambabio.formats.source import open_blocks


@contextmanager
def open_raw_records(
    path: str | os.PathLike[str], format: str | None = None
) -> Iterator[Iterator[RawRecord]]:
    """The raw records of a file or of standard input ("-")."""
    with open_blocks(path) as (source, blocks):
        yield parse_fasta(plain_newlines(blocks), source)
