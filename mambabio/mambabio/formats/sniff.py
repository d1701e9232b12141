"""Recognising a file's format by what it holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from mambabio.errors import SequenceError
from mambabio.formats.biopython import check_format, parse_biopython
from mambabio.formats.fasta import parse_fasta
from mambabio.formats.fastq import parse_fastq
from mambabio.formats.lines import plain_newlines
from mambabio.formats.raw import RawRecord
from mambabio.formats.source import open_blocks

UTF8_BOM = b"\xef\xbb\xbf"

# First bytes of formats that Biopython reads.
_KNOWN = (
    (b"LOCUS ", "genbank"),
    (b"ID   ", "embl"),
    (b"ABIF", "abi"),
    (b"\t\x00\x00\x00\x14SnapGene", "snapgene"),
    (b".sff", "sff"),
    (b"\x1a\x41\x27\x43", "twobit"),
    (b"\x43\x27\x41\x1a", "twobit"),
    (b"CLUSTAL", "clustal"),
    (b"#NEXUS", "nexus"),
    (b"# STOCKHOLM", "stockholm"),
)
# First bytes of what holds no readable sequence, and what to do about it.
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive: unpack it"),
    (b"BZh", "compressed by bzip2: run bunzip2, or compress it by gzip"),
    (b"\xfd7zXZ", "compressed by xz: run unxz, or compress it by gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: run unzstd, or compress it by gzip"),
    (b"\xff\xfe", "UTF-16 text: save it as plain text (UTF-8)"),
    (b"\xfe\xff", "UTF-16 text: save it as plain text (UTF-8)"),
    (b"BAM\x01", "a BAM file: run samtools fasta"),
    (b"CRAM", "a CRAM file: run samtools fasta"),
    (b"@HD\t", "a SAM file: run samtools fasta"),
    (b"@SQ\t", "a SAM file: run samtools fasta"),
    (b"##gff", "GFF annotation: give the FASTA file that belongs to it"),
    (b"##fileformat=VCF", "VCF variants: give the FASTA file that they belong to"),
    (b"{\\rtf", "a word processor's file: save it as plain text"),
    (b"%PDF", "a PDF: give plain text"),
    (b"<!DOCTYPE", "a web page: was the download an error message?"),
    (b"<html", "a web page: was the download an error message?"),
    (b"version https://git-lfs", "a pointer of Git LFS: run git lfs pull"),
)
_HEAD_BYTES = 64
_ACCEPTED = "accepted are FASTA, FASTQ, GenBank and EMBL, also gzip or bgzip"


@contextmanager
def open_raw_records(
    path: str | os.PathLike[str], format: str | None = None
) -> Iterator[Iterator[RawRecord]]:
    """The raw records of a file or of standard input ("-").

    format: a name, or None to recognise it by content.
    Raises `UsageError` for an unknown name, `SequenceError` for what cannot be read.
    """
    if format is not None:
        format = {"fa": "fasta", "fq": "fastq", "gb": "genbank"}.get(format.lower(), format.lower())
        if format not in ("fasta", "fastq"):
            check_format(format)
    with open_blocks(path) as (source, blocks):
        head = _head(blocks)
        format = _recognise(b"".join(head), source, format)
        if b"".join(head).startswith(UTF8_BOM):
            head = [b"".join(head).removeprefix(UTF8_BOM)]
        blocks = chain(head, blocks)
        if format == "fasta":
            yield parse_fasta(plain_newlines(blocks), source)
        elif format == "fastq":
            yield parse_fastq(plain_newlines(blocks), source)
        else:
            yield parse_biopython(blocks, format, source)


def sniff_format(path: str | os.PathLike[str]) -> str:
    """Name of a file's format, by content.  Raises `SequenceError` as reading it would."""
    with open_blocks(path) as (source, blocks):
        return _recognise(b"".join(_head(blocks)), source, None)


def _head(blocks: Iterator[bytes]) -> list[bytes]:
    """The first blocks, enough to see past blank lines what begins."""
    head: list[bytes] = []
    seen = 0
    for block in blocks:
        head.append(block)
        seen += len(block) if seen else len(block.lstrip())
        if seen >= _HEAD_BYTES:
            break
    return head


def _recognise(head: bytes, source: str, format: str | None) -> str:
    text = head.removeprefix(UTF8_BOM)
    start = text.lstrip()[:64]
    if not start:
        raise SequenceError(f"{source}: the file is empty; {_ACCEPTED}")
    if format not in (None, "fasta", "fastq"):
        return format
    for magic, what in _FOREIGN:
        if text.startswith(magic) or start.startswith(magic):
            raise SequenceError(f"{source}: is {what}")
    if start.startswith(b"ID   ") and text.lstrip().partition(b"\n")[0].rstrip().endswith(b" AA."):
        raise SequenceError(f"{source}: is a protein entry; give the nucleotide sequence")
    found = next((name for magic, name in _KNOWN if text.startswith(magic)), None)
    found = found or next((name for magic, name in _KNOWN if start.startswith(magic)), None)
    if found is None and b"\0" in text[: 1 << 16]:
        raise SequenceError(
            f"{source}: the file is binary data, not sequences as text; {_ACCEPTED}"
        )
    if found is None:
        found = {b">": "fasta", b"@": "fastq"}.get(start[:1])
    if format is not None and found != format:
        raise SequenceError(
            f"{source}: is not {format}: it starts with {start[:20].decode('ascii', 'replace')!r}"
        )
    if found is None:
        if set(start.upper()) <= set(b"ACGTUN \t\r\n"):
            raise SequenceError(
                f"{source}: is sequence without a name: put a line such as '>name' before it"
            )
        raise SequenceError(
            f"{source}: is of no format that is recognised by its content (it starts with "
            f"{start[:20].decode('ascii', 'replace')!r}); {_ACCEPTED}, or name the format"
        )
    return found
