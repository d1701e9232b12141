"""Sequence files in any layout, and what reading one gives: for the tests of mambabio.records."""

from __future__ import annotations

from pathlib import Path

import pytest

from mambabio.alphabet import decode
from mambabio.errors import SequenceError
from mambabio.records import read_records


def fasta(genomes: list[str], width: int, end: str) -> str:
    out = []
    for i, text in enumerate(genomes):
        lines = [text[at : at + width] for at in range(0, len(text), width)]
        out += [f">r{i} genome {i}", *lines]
    return end.join(out) + end


def fastq(genomes: list[str], width: int, end: str) -> str:
    out = []
    for i, text in enumerate(genomes):
        lines = [text[at : at + width] for at in range(0, len(text), width)]
        # Qualities that look like the marks of a record.
        quality = [("@+>I" * len(line))[: len(line)] for line in lines]
        out += [f"@r{i} genome {i}", *lines, "+", *quality]
    return end.join(out) + end


def letters(path: Path | str, **options: object) -> list[str]:
    return [decode(r.sequence) for r in read_records(path, **options)]  # type: ignore[arg-type]


def failure(path: Path | str, **options: object) -> str:
    with pytest.raises(SequenceError) as caught:
        letters(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message
