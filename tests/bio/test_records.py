"""Reading records: any layout gives the same letters, and what is wrong is said with its place."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mambabio.alphabet import LETTERS, N, decode, encode, soft_mask_of
from mambabio.errors import SequenceError
from mambabio.formats import source
from mambabio.records import read_records, stream_records
from mambacore.errors import UsageError

GENOMES = st.lists(st.text(alphabet=LETTERS + "acgtn", min_size=1), min_size=1, max_size=4)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])
# The end block of the bgzip format (SAM specification, section 4.1.2).
BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes | str], Path]:
    def _write(content: bytes | str) -> Path:
        path = tmp_path / "input"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return _write


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


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


# Compression


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


# Biopython's formats


def entry(format: str, text: str = "ACGTTGCA" * 40, kind: str = "DNA") -> str:
    from Bio.Seq import Seq
    from Bio.SeqIO import write as write_entry
    from Bio.SeqRecord import SeqRecord

    record = SeqRecord(Seq(text), id="NC_1.1", name="NC_1", description="Testus testus")
    record.annotations = {"molecule_type": kind, "topology": "circular"}
    out = io.StringIO()
    write_entry([record], out, format)
    return out.getvalue()


@pytest.mark.parametrize("format", ["genbank", "embl"])
def test_entries_are_recognised_and_circular(write: Callable[..., Path], format: str) -> None:
    content = entry(format)
    for form in (
        content,
        "\n" + content,
        content.replace("\n", "\r\n"),
        gzip.compress(content.encode()),
    ):
        for named in (None, format):
            (record,) = read_records(write(form), format=named)
            assert record.circular
            assert record.name == "NC_1.1"
            assert record.description.endswith("Testus testus")
            assert decode(record.sequence) == "ACGTTGCA" * 40
    kept = next(read_records(write(content), soft_mask="keep"))
    assert kept.mask is not None
    assert not kept.mask.any()
    stream = next(stream_records(write(content), chunk_bytes=100))
    assert [len(c) for c in stream.chunks] == [100, 100, 100, 20]
    assert stream.circular


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", ["genbank", "embl"])
def test_every_cut_of_an_entry_is_an_error(write: Callable[..., Path], format: str) -> None:
    content = entry(format)
    body = content.removesuffix("//\n")
    for size in range(5, len(body), 41):
        failure(write(content[:size]))
    # A line missing from the middle.
    lines = content.splitlines(keepends=True)
    assert "xpected" in failure(write("".join(lines[:-3] + lines[-2:])))


def test_proteins_and_entries_without_sequence(write: Callable[..., Path]) -> None:
    assert "protein" in failure(write(entry("genbank", "MKVLEFILPQ" * 3, "protein")))
    head = entry("genbank").partition("ORIGIN")[0]
    assert "no sequence" in failure(write(head + "CONTIG      join(X.1:1..320)\n//\n"))


def test_other_formats_by_name_and_content(write: Callable[..., Path]) -> None:
    assert letters(write("a\tACGT\nb\tAC\n"), format="tab") == ["ACGT", "AC"]
    assert letters(write("CLUSTAL W (1.8)\n\na   ACGT\nb   ACCT\n\n")) == ["ACGT", "ACCT"]
    # Biopython's parser never returns from this one.
    assert "too early" in failure(write("CLUSTAL W (1.8)\n"))
    assert "is a gap" in failure(write("CLUSTAL W (1.8)\n\na   AC-T\nb   ACCT\n\n"))


# Anything at all


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
