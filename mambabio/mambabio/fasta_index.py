"""Making what random access needs: an index, or a copy of the file that can be indexed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mambabio.alphabet import decode
from mambabio.errors import SequenceError
from mambabio.formats import RawRecord, compression, sniff_format
from mambabio.records import Pieces, read_pieces

_LINE_BASES = 1 << 16
_LARGE_BYTES = 200_000_000


def prepare(path: str, folder: Path, say: Callable[[str], None]) -> None:
    """Fill a folder with the index of a sequence file, or with an indexed copy of it.

    The file is read through once, so what is wrong with it is said here and not in mid-training,
    and htslib's index is used only if it finds the same names and lengths: it takes no uneven
    lines and drops names that occur twice.
    """
    if sniff_format(path) == "fasta" and compression(path) != "gzip":
        if os.path.getsize(path) > _LARGE_BYTES:
            say(f"{path}: looking through the file and making its index, once")
        lengths: dict[str, int] = {}
        for raw, pieces in _unique(path, say):
            lengths[raw.name] = sum(len(ids) for ids, _ in pieces)
        if _index(path, folder) and _indexed_lengths(path, folder) == lengths:
            return
        why = "its lines cannot be indexed"
    elif compression(path) == "gzip":
        why = "gzip cannot be entered in the middle (bgzip can)"
    else:
        why = "it is not FASTA"
    say(f"{path}: making a copy for random access in the cache, once: {why}")
    copy = folder / "records.fa"
    with open(copy, "wb") as file:
        for raw, pieces in _unique(path, say):
            file.write(b">" + raw.name.encode() + b"\n")
            _write_lines(file, pieces)
    if not _index(str(copy), folder):
        raise SequenceError(f"{path}: htslib cannot index it")


def open_fasta(path: str, folder: Path) -> Any:
    """pysam's reader of a file prepared in `folder`."""
    import pysam

    copy, blocks = folder / "records.fa", folder / "index.gzi"
    return pysam.FastaFile(
        str(copy) if copy.exists() else os.path.abspath(path),
        filepath_index=str(folder / "index.fai"),
        filepath_index_compressed=str(blocks) if blocks.exists() else None,
    )


def _unique(path: str, say: Callable[[str], None]) -> Iterator[tuple[RawRecord, Pieces]]:
    seen: dict[str, int] = {}
    for raw, pieces in read_pieces(path, soft_mask="keep", notice=say):
        first = seen.setdefault(raw.name, raw.index)
        if first != raw.index:
            raise SequenceError(
                f"{path}: records {first + 1} and {raw.index + 1} are both named {raw.name!r}; "
                "random access needs different names"
            )
        yield raw, pieces


def _write_lines(file: Any, pieces: Pieces) -> None:
    held = bytearray()
    for ids, mask in pieces:
        held += decode(ids, mask).encode()
        whole = len(held) - len(held) % _LINE_BASES
        for start in range(0, whole, _LINE_BASES):
            file.write(held[start : start + _LINE_BASES] + b"\n")
        del held[:whole]
    if held:
        file.write(held + b"\n")


def _index(path: str, folder: Path) -> bool:
    """Have htslib index a file; False if it cannot."""
    import pysam

    fai, gzi = str(folder / "index.fai"), str(folder / "index.gzi")
    verbosity = pysam.set_verbosity(0)
    try:
        pysam.faidx(os.path.abspath(path), "--fai-idx", fai, "--gzi-idx", gzi)
    except pysam.SamtoolsError:
        return False
    finally:
        pysam.set_verbosity(verbosity)
    return os.path.exists(fai)


def _indexed_lengths(path: str, folder: Path) -> dict[str, int] | None:
    try:
        with open_fasta(path, folder) as fasta:
            return dict(zip(fasta.references, fasta.lengths, strict=True))
    except (OSError, ValueError):
        return None
