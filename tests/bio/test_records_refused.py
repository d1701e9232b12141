"""What cannot be read is said, with its place, in one line: whatever the bytes are."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_cases import failure, fasta

from mambabio.errors import SequenceError
from mambabio.formats import source
from mambabio.records import read_records, stream_records
from mambacore.errors import UsageError


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (">p\nMTEYKLVVVGAGGVGKSALTIQLIQNHFVDEYDPTIEDSYRKQ\n", "looks like protein"),
        (">a\nACGT>b\nAC\n", "joining files"),
        (">a\nAC\xe9T\n".encode("latin-1"), "byte 0xe9"),
        ("", "is empty"),
        ("\n \r\n\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (gzip.compress(b""), "is empty"),
        (">a\n>b\n>c\n", "record 'a' has no sequence"),
        (">a\nAC\n>b", "record 'b' has no sequence"),
        (">a\nAC\n>b\n \n\n", "record 'b' has no sequence"),
        ("@a\n\n+\n\n", "record 'a' has no sequence"),
        (">\nACGT\n", "the record on line 1 has no name"),
        (bytes(range(256)) * 9, "is binary data"),
        (b">a\nACGT\n\0\0\0\n", "is binary data"),
        ("ACGTACGT\n", "without a name"),
        ("hello\n", "no format that is recognised"),
        ("@SQ\tSN:chr1\tLN:4\n", "samtools fasta"),
        (b"PK\x03\x04zip", "zip archive"),
        (b"BZh91AY", "bzip2"),
        (b"\xff\xfe>\0a\0", "UTF-16"),
        ("##gff-version 3\n", "GFF"),
        (">" + "x" * (2 << 20) + "\nACGT\n", "header on line 1 is longer"),
        ("@a\nACGT\n+\nIII\n", "'a': the quality (line 4) has 3 values for 4 bases"),
        ("@a\nACGT\n+\nIII\n@b\nA\n+\nI\n", "'a': the quality (line 4) has 3 values for 4 bases"),
        ("@a\nACGT\n+\nIIIII\n@b\nA\n+\nI\n", "has 5 values for 4 bases"),
        ("@a\nAC\nGT\n+\nII\nIII\n@b\nA\n+\nI\n", "has 5 values for 4 bases"),
        ("@a\nACGT\n+\nII", "truncated"),
        ("@a\nACGT\n+", "truncated"),
        ("@a\nACGT\n", "truncated"),
        ("@a", "truncated"),
        ("@a\nACGT\n+\nIIII\nACGT\n", "line 5 is not FASTQ"),
        ("ID   X_Y   Reviewed;   4 AA.\n", "is a protein"),
    ],
)
def test_what_cannot_be_read_is_said(
    write: Callable[..., Path], content: bytes | str, said: str
) -> None:
    assert said in failure(write(content))


@given(
    st.text(alphabet="ACGT", max_size=40),
    st.sampled_from("-.*XE?1@"),
    st.integers(1, 9),
    st.integers(1, 20),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_bad_letter_is_named_with_record_position_and_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, before: str, bad: str, width: int, block: int
) -> None:
    monkeypatch.setattr(source, "BLOCK_BYTES", block)
    path = folder / "x"
    path.write_text("\n" + fasta(["AC", before + bad + "ACGT"], width, "\n"))
    first_lines = 1 + 1 + -(-2 // width) + 1
    line = first_lines + len(before) // width + 1
    assert f"record 'r1': letter {bad!r} at position {len(before) + 1} (line {line})" in failure(
        path
    )


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert "not found" in failure(tmp_path / "none.fa")
    assert "folder" in failure(tmp_path)


def test_bad_arguments(write: Callable[..., Path]) -> None:
    path = write(">a\nA\n")
    for bad in (
        lambda: read_records(path, soft_mask="mask"),  # type: ignore[arg-type]
        lambda: stream_records(path, soft_mask="keep"),  # type: ignore[arg-type]
        lambda: stream_records(path, chunk_bytes=0),
        lambda: list(read_records(path, format="bam")),
    ):
        with pytest.raises(UsageError, match=r"accepted|at least"):
            bad()
    assert "is not fastq" in failure(path, format="fastq")


@given(
    st.one_of(
        st.binary(max_size=300),
        st.builds(
            lambda whole, at, junk, cut: whole[:at] + junk + whole[at + cut :],
            st.sampled_from(
                [
                    b">a b\nACGTTGCA\nAC\n>c\nAC\n",
                    b"@a b\nACGT\n+\nIIII\n@b\nAC\n+\nII\n",
                    gzip.compress(b">a b\nACGTTGCA\nAC\n>c\nAC\n" * 3, mtime=0),
                    b"LOCUS       NC_1  4 bp    DNA     linear   UNK 01-JAN-1980\n"
                    b"ORIGIN\n        1 acgt\n//\n",
                    b"ID   NC_1; SV 1; linear; DNA; ; UNC; 4 BP.\nXX\n"
                    b"SQ   Sequence 4 BP;\n     acgt 4\n//\n",
                ]
            ),
            st.integers(0, 90),
            st.binary(max_size=8),
            st.integers(0, 12),
        ),
    ),
    st.integers(1, 64),
)
@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mangled_bytes_give_records_or_one_clear_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, block: int
) -> None:
    monkeypatch.setattr(source, "BLOCK_BYTES", block)
    path = folder / "x"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            records = list(read_records(path))
        except SequenceError as error:
            assert str(error).startswith(str(path))  # noqa: PT017 - no error is right as well
        else:
            assert records
            assert all(len(r) and r.sequence.max() < 15 for r in records)
