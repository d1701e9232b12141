"""Reading records: any layout gives the same letters, in constant memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_cases import fasta, fastq, letters

from mambabio.alphabet import LETTERS, N, decode, encode, soft_mask_of
from mambabio.errors import SequenceError
from mambabio.formats import source
from mambabio.records import read_records, stream_records

GENOMES = st.lists(st.text(alphabet=LETTERS + "acgtn", min_size=1), min_size=1, max_size=4)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])


# Layout


@given(GENOMES, st.integers(1, 30), ENDS, st.integers(1, 40), st.sampled_from([fasta, fastq]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_layout_and_blocks_change_nothing(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    genomes: list[str],
    width: int,
    end: str,
    block: int,
    layout: Callable[[list[str], int, str], str],
) -> None:
    monkeypatch.setattr(source, "BLOCK_BYTES", block)
    path = folder / "x"
    path.write_bytes(
        b"\xef\xbb\xbf" * (block % 2 and block > 3) + layout(genomes, width, end).encode()
    )
    records = list(read_records(path))
    assert [decode(r.sequence) for r in records] == [text.upper() for text in genomes]
    assert [r.name for r in records] == [f"r{i}" for i in range(len(genomes))]
    assert [r.description for r in records] == [f"r{i} genome {i}" for i in range(len(genomes))]
    assert [r.index for r in records] == list(range(len(genomes)))


@given(GENOMES, st.integers(1, 30), st.integers(1, 40), st.integers(1, 50))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_joined_are_the_record_and_have_their_size(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    genomes: list[str],
    width: int,
    block: int,
    chunk: int,
) -> None:
    monkeypatch.setattr(source, "BLOCK_BYTES", block)
    path = folder / "x"
    path.write_text(fasta(genomes, width, "\n"))
    for stream, text in zip(stream_records(path, chunk_bytes=chunk), genomes, strict=True):
        chunks = list(stream.chunks)
        np.testing.assert_array_equal(np.concatenate(chunks), encode(text))
        assert all(len(c) == chunk for c in chunks[:-1])
        assert 0 < len(chunks[-1]) <= chunk
        assert all(c.flags.writeable for c in chunks)


def test_chunks_left_unread_are_skipped_and_still_checked(write: Callable[..., Path]) -> None:
    path = write(">a\nACGT\n>b\nCC\n")
    assert [s.name for s in stream_records(path, chunk_bytes=1)] == ["a", "b"]
    first, second = stream_records(path, chunk_bytes=1)
    for stream in (first, second):
        with pytest.raises(RuntimeError, match="are gone"):
            next(stream.chunks)
    with pytest.raises(SequenceError, match=r"'a'.*position 3 \(line 2\)"):
        list(stream_records(write(">a\nAC-GT\n>b\nCC\n")))


def test_blank_lines_and_blanks_are_no_letters(write: Callable[..., Path]) -> None:
    path = write("\n \r\n> a  x \nAC GT \n\n\tAC\n\n\n>b\nC\n\n")
    assert letters(path) == ["ACGTAC", "C"]
    assert [(r.name, r.description) for r in read_records(path)] == [("a", "a  x"), ("b", "b")]


def test_the_last_line_needs_no_newline(write: Callable[..., Path]) -> None:
    assert letters(write(">a\nACGT")) == ["ACGT"]
    assert letters(write("@a\nACGT\n+\nIIII")) == ["ACGT"]


# Letters


@given(st.text(alphabet="ACGTacgtNn", min_size=1), st.integers(1, 9))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_soft_mask_policies(folder: Path, text: str, width: int) -> None:
    path = folder / "x"
    path.write_text(fasta([text], width, "\n"))
    (dropped,), (kept,), (hidden,) = (
        list(read_records(path, soft_mask=policy)) for policy in ("drop", "keep", "n")
    )
    mask = soft_mask_of(text)
    assert dropped.mask is None
    assert kept.mask is not None
    assert decode(kept.sequence, kept.mask) == text
    np.testing.assert_array_equal(dropped.sequence, encode(text))
    np.testing.assert_array_equal(hidden.sequence, np.where(mask, N, encode(text)))
    (stream,) = (np.concatenate(list(s.chunks)) for s in stream_records(path, soft_mask="n"))
    np.testing.assert_array_equal(stream, hidden.sequence)


def test_u_reads_as_t_with_one_notice(write: Callable[..., Path]) -> None:
    said: list[str] = []
    path = write(">a\nACGT\n>b\nACGU\n>c\nuu\n")
    records = list(read_records(path, notice=said.append))
    assert [decode(r.sequence) for r in records] == ["ACGT", "ACGT", "TT"]
    assert [r.uracil for r in records] == [False, True, True]
    assert len(said) == 1
    assert "'b'" in said[0]
    with pytest.warns(UserWarning, match="U is read as T"):
        letters(path)


# Memory and time


def test_a_long_record_streams_in_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.fa"
    line = b"ACGTTGCAACGTTGCAACGTTGCAACGTTGCAACGTTGCAACGTTGCAACGTTGCAACGT\n"
    with open(path, "wb") as file:
        file.write(b">long\n")
        for _ in range(60):
            file.write(line * 17500)
    program = (
        "import resource, sys\n"
        "from mambabio.records import stream_records\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "def total(path): return sum(len(c) for r in stream_records(path) for c in r.chunks)\n"
        "open('/dev/null').close(); start = peak()\n"
        "bases = total(sys.argv[1]); print(bases, (peak() - start) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, check=True)
    bases, mebibytes = map(int, done.stdout.split())
    assert bases == 60 * 17500 * 60
    assert mebibytes < 24


def test_reading_sequences_imports_neither_torch_nor_the_parsers() -> None:
    program = (
        "import sys, mambabio\n"
        "list(mambabio.read_records('-')), mambabio.IndexedFasta, mambabio.KmerTokenizer(3)\n"
        "print([name for name in ('torch', 'Bio', 'pysam') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input=b">a\nA\n", capture_output=True, check=True)
    assert done.stdout == b"[]\n"


@pytest.mark.parametrize(
    "name", ["mtdna/great_apes_mt.fa.gz", "encode_may2005/ENm002/human.ENm002.fa.gz"]
)
def test_real_genomes_as_htslib_reads_them(shared_data: Path, name: str) -> None:
    pysam = pytest.importorskip("pysam")
    path = shared_data / "dna" / name
    with pysam.FastxFile(str(path)) as expected:
        for got, entry in zip(read_records(path, soft_mask="keep"), expected, strict=True):
            assert got.name == entry.name
            assert decode(got.sequence, got.mask) == entry.sequence
