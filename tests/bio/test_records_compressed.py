"""gzip and bgzip by content, from files and standard input: every cut is an error."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from record_cases import failure, fasta, letters

from mambabio.formats import source

# The end block of the bgzip format (SAM specification, section 4.1.2).
BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def bgzip(data: bytes, path: Path) -> bytes:
    import pysam

    with pysam.BGZFile(str(path), "wb") as file:  # type: ignore[attr-defined]
        file.write(data)
    return path.read_bytes()


TEXT = fasta(["ACGTTGCAAC" * 30000, "AC" * 50], 60, "\n").encode()
EXPECTED = ["ACGTTGCAAC" * 30000, "AC" * 50]


def test_gzip_members_bgzip_and_padding_are_read(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    half = len(TEXT) // 2
    two = gzip.compress(TEXT[:half]) + gzip.compress(TEXT[half:])
    blocks = bgzip(TEXT, tmp_path / "b")
    assert blocks.endswith(BGZIP_END)
    for content in (TEXT, gzip.compress(TEXT), two, two + b"\0" * 700, blocks):
        assert letters(write(content)) == EXPECTED
    assert letters(write(blocks + bgzip(b">c\nA\n", tmp_path / "c"))) == [*EXPECTED, "A"]


@pytest.mark.parametrize("block", [7, 100, 1 << 20])
def test_every_cut_of_a_gzip_file_is_an_error(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(source, "BLOCK_BYTES", block)
    whole = gzip.compress(b">a\n" + b"ACGTTGCA" * 9 + b"\n", mtime=0)
    for size in range(2, len(whole)):
        assert "truncated" in failure(write(whole[:size])), size


def test_bgzip_cut_between_blocks_is_an_error(write: Callable[..., Path], tmp_path: Path) -> None:
    whole = bgzip(TEXT, tmp_path / "b")
    cut = whole.removesuffix(BGZIP_END)
    assert gzip.decompress(cut) == TEXT
    assert "lacks its end block" in failure(write(cut))
    first_block = int.from_bytes(whole[16:18], "little") + 1
    assert "lacks its end block" in failure(write(whole[:first_block]))
    assert "truncated" in failure(write(whole[: first_block + 100]))


def test_damaged_gzip_is_an_error(write: Callable[..., Path]) -> None:
    whole = bytearray(gzip.compress(TEXT))
    whole[len(whole) // 2] ^= 0xFF
    assert "damaged" in failure(write(bytes(whole)))
    assert "not gzip" in failure(write(gzip.compress(TEXT) + b">c\nACGT\n"))


@pytest.mark.parametrize("content", [TEXT, gzip.compress(TEXT), b""])
def test_standard_input(content: bytes) -> None:
    program = (
        "from mambabio import read_records, SequenceError\n"
        "try: print([(r.source, len(r)) for r in read_records('-')])\n"
        "except SequenceError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], input=content, capture_output=True)
    expected = "[('stdin', 300000), ('stdin', 100)]" if content else "stdin: the file is empty"
    assert done.stdout.decode().startswith(expected), done.stderr.decode()
