"""Random access: the same letters as reading the whole, through an index that fits its file."""

from __future__ import annotations

import gzip
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambabio import indexed
from mambabio.alphabet import decode, encode
from mambabio.errors import SequenceError
from mambabio.indexed import IndexedFasta, parse_region
from mambabio.records import read_records
from mambacore.errors import UsageError

pysam = pytest.importorskip("pysam")

RNG = np.random.default_rng(7)
CHR1 = "".join(RNG.choice(list("ACGTacgtNRY"), 10_007))
TEXT = ">chr1 the first\n" + "\n".join(CHR1[i : i + 60] for i in range(0, 10_007, 60))
TEXT += "\n>HLA:01:01 colons\nACGTACGTAC\n"


def plain(text: str) -> bytes:
    return text.encode()


def crlf(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


def cr(text: str) -> bytes:
    return text.replace("\n", "\r").encode()


def uneven(text: str) -> bytes:
    return b"\xef\xbb\xbf\n\n" + text.replace("A\n", "A\n\n").encode()


def gzipped(text: str) -> bytes:
    return gzip.compress(text.encode())


def bgzipped(text: str) -> bytes:
    path = Path(os.environ["MAMBAKIT_CACHE"]) / "made.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with pysam.BGZFile(str(path), "wb") as file:
        file.write(text.encode())
    return path.read_bytes()


FORMS = [plain, crlf, cr, uneven, gzipped, bgzipped]
COPIED = {cr, uneven, gzipped}


@pytest.mark.parametrize("form", FORMS)
def test_fetch_is_a_slice_of_the_record(tmp_path: Path, form: Callable[[str], bytes]) -> None:
    path = tmp_path / "in" / "x.fa"
    path.parent.mkdir()
    path.write_bytes(form(TEXT))
    said: list[str] = []
    whole = {r.name: r.sequence for r in read_records(path)}
    with IndexedFasta(path, tmp_path / "cache", log=said.append) as fasta:
        assert fasta.names == ("chr1", "HLA:01:01")
        for name, ids in whole.items():
            assert fasta.length(name) == len(ids)
            np.testing.assert_array_equal(fasta.fetch(name), ids)
            for _ in range(20):
                start, end = sorted(RNG.integers(0, len(ids) + 1, 2))
                np.testing.assert_array_equal(
                    fasta.fetch(name, int(start), int(end)), ids[start:end]
                )
        assert decode(fasta.fetch("HLA:01:01", 2, 5)) == "GTA"
    assert os.listdir(path.parent) == ["x.fa"]
    assert len(said) == (form in COPIED), said
    again: list[str] = []
    with IndexedFasta(path, tmp_path / "cache", log=again.append) as fasta:
        np.testing.assert_array_equal(fasta.fetch("chr1", 5000), whole["chr1"][5000:])
    assert again == []


def test_a_changed_file_gets_a_new_index(tmp_path: Path) -> None:
    path, cache = tmp_path / "x.fa", tmp_path / "cache"
    path.write_text(">a\nACGTACGT\n")
    first = IndexedFasta(path, cache)
    assert first.length("a") == 8
    # The same size, another layout: a stale index would give other letters.
    path.write_text(">a\nACG\nTTT\n")
    os.utime(path, ns=(1, 1))
    with pytest.raises(SequenceError, match="changed while it was in use"):
        first.fetch("a", 0, 4)
    with IndexedFasta(path, cache) as fasta:
        assert decode(fasta.fetch("a")) == "ACGTTT"
    # One index is kept a file, not one a version.
    assert sum(1 for _ in cache.rglob("index.fai")) == 1


def test_read_only_folders_and_default_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAMBAKIT_CACHE", str(tmp_path / "own"))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "x.fa").write_text(">a\nACGT\n")
    folder.chmod(0o555)
    try:
        with IndexedFasta(folder / "x.fa") as fasta:
            assert decode(fasta.fetch("a", 1, 3)) == "CG"
    finally:
        folder.chmod(0o755)
    assert list((tmp_path / "own").rglob("index.fai"))
    assert os.listdir(folder) == ["x.fa"]


def test_entries_of_other_formats_are_copied(tmp_path: Path) -> None:
    path = tmp_path / "x.fq"
    path.write_text("@r1\nACGT\n+\nIIII\n@r2\nCCC\n+\nIII\n")
    said: list[str] = []
    with IndexedFasta(path, tmp_path / "cache", log=said.append) as fasta:
        assert decode(fasta.fetch("r2", 1)) == "CC"
    assert "not FASTA" in said[0]


def test_names_that_are_no_utf8_and_long_fetches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexed, "_SLICE_BASES", 7)
    path = tmp_path / "x.fa"
    path.write_bytes(">r\xe9 x\nACGTNACG\nTTAC\n>é\nACG\n".encode("latin-1"))
    (name, _), expected = zip(*[(r.name, r.sequence) for r in read_records(path)], strict=True)
    with IndexedFasta(path, tmp_path / "cache", log=lambda _: None) as fasta:
        np.testing.assert_array_equal(fasta.fetch(name), expected[0])
        np.testing.assert_array_equal(fasta.fetch(name, 3, 11), expected[0][3:11])


def test_copies_keep_long_records_and_case(tmp_path: Path) -> None:
    text = "".join(RNG.choice(list("ACGTacgtN"), 200_003))
    path = tmp_path / "x.fa.gz"
    path.write_bytes(gzip.compress(f">a\n{text}\n>b\nAC\n".encode()))
    with IndexedFasta(path, tmp_path / "cache", log=lambda _: None) as fasta:
        np.testing.assert_array_equal(fasta.fetch("a"), encode(text))
        np.testing.assert_array_equal(fasta.fetch("a", 65_530, 131_080), encode(text[65530:131080]))
        assert decode(fasta.fetch("b")) == "AC"
    (copy,) = (tmp_path / "cache").rglob("records.fa")
    assert copy.read_text().replace("\n", "") == f">a{text}>bAC"


WORKER = """
import sys
from mambabio import IndexedFasta, SequenceError, decode
path, cache = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
right = 0
for _ in range(25):
    try:
        with IndexedFasta(path, cache, log=lambda _: None) as fasta:
            assert fasta.length("a") == 300_000, fasta.length("a")
            got = decode(fasta.fetch("a", 150_000, 150_010))
            assert got == "ACGTTGCAAC", got
            right += 1
    except SequenceError as error:
        assert "changed while" in str(error), error
print(right)
"""


@pytest.mark.parametrize("compress", [False, True])
def test_processes_never_spoil_an_index(tmp_path: Path, compress: bool) -> None:
    path, cache = tmp_path / "x.fa", tmp_path / "cache"
    text = (">a\n" + "ACGTTGCAAC" * 30_000 + "\n").encode()
    path.write_bytes(gzip.compress(text, 1) if compress else text)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, path, cache],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    # Meanwhile the file changes, so that indexes are made while others are read.
    for i in range(15):
        os.utime(path, ns=(i, i))
        time.sleep(0.02)
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err
        assert int(out) > 0
    with IndexedFasta(path, cache, log=lambda _: None) as fasta:
        assert decode(fasta.fetch("a", 299_990)) == "ACGTTGCAAC"
    assert not list(cache.rglob(".*"))


def test_pickled_and_forked_readers_read_on(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text(TEXT)
    fasta = IndexedFasta(path, tmp_path / "cache")
    expected = decode(fasta.fetch("chr1", 100, 200))
    assert decode(pickle.loads(pickle.dumps(fasta)).fetch("chr1", 100, 200)) == expected
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"".join(decode(fasta.fetch("chr1", 100, 200)).encode() for _ in "1"))
        os._exit(0)
    for _ in range(50):
        assert decode(fasta.fetch("chr1", 100, 200)) == expected
    os.waitpid(child, 0)
    assert os.read(reading, 1000).decode() == expected
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b">a\n>b\n", "record 'a' has no sequence"),
        (b">a\nACGT\n>b\nAC\n>a\nA\n", "records 1 and 3 are both named 'a'"),
        (b">a\nAC-GT\n", "position 3 (line 2)"),
        (gzip.compress(b">a\nACGT\n")[:-4], "truncated"),
        (bytes(300), "binary"),
    ],
)
def test_bad_files_are_refused_and_leave_nothing(tmp_path: Path, content: bytes, said: str) -> None:
    path, cache = tmp_path / "x.fa", tmp_path / "cache"
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(SequenceError) as caught:
            IndexedFasta(path, cache, log=lambda _: None)
        assert said in str(caught.value)
        assert str(path) in str(caught.value)
    assert [x for x in cache.rglob("*") if x.is_file() and x.suffix != ".lock"] == []


def test_bgzip_without_its_end_block_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.fa.gz"
    path.write_bytes(bgzipped(TEXT)[:-28])
    with pytest.raises(SequenceError, match="lacks its end block"):
        IndexedFasta(path, tmp_path / "cache")


def test_ranges_and_names_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text(TEXT)
    with IndexedFasta(path, tmp_path / "cache") as fasta:
        assert fasta.resolve("chr1:1-10") == ("chr1", 0, 10)
        assert fasta.resolve("chr1") == ("chr1", 0, 10_007)
        assert fasta.resolve("HLA:01:01") == ("HLA:01:01", 0, 10)
        assert fasta.resolve("{HLA:01:01}:2-3") == ("HLA:01:01", 1, 3)
        assert len(fasta.fetch("chr1", 10_007)) == 0
        for call, said in (
            (lambda: fasta.fetch("chr1", 0, 10_008), "10,007 bases"),
            (lambda: fasta.resolve("chr1:1-10,008"), "10,007 bases"),
            (lambda: fasta.resolve("chr1:20,000"), "10,007 bases"),
            (lambda: fasta.fetch("chr1", -1, 5), "not within"),
            (lambda: fasta.fetch("chr1", 5, 4), "not within"),
            (lambda: fasta.fetch("chr2"), "no record 'chr2'; there are chr1, HLA:01:01"),
        ):
            with pytest.raises(SequenceError) as caught:
                call()
            assert said in str(caught.value)
            assert str(path) in str(caught.value)
    with pytest.raises(SequenceError, match="check the path"):
        IndexedFasta(tmp_path / "none.fa", tmp_path / "cache")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SequenceError, match="plain file"):
        IndexedFasta(tmp_path / "pipe", tmp_path / "cache")
    with pytest.raises(UsageError, match="standard input"):
        IndexedFasta("-")


# Regions


@given(st.text(alphabet="chrX12._*|", min_size=1), st.integers(1, 10**10), st.integers(0, 10**10))
def test_regions_read_back(name: str, first: int, more: int) -> None:
    last = first + more
    expected = (name, first - 1, last)
    assert parse_region(f"{name}:{first}-{last}") == expected
    assert parse_region(f"{name}:{first:,}-{last:,}") == expected
    assert parse_region(f"{{{name}:7}}:{first}-{last}") == (f"{name}:7", first - 1, last)
    assert parse_region(f"{name}:{first}") == (name, first - 1, None)
    assert parse_region(f"{name}:{first}-") == (name, first - 1, None)
    assert parse_region(name) == (name, 0, None)


def test_names_with_colons() -> None:
    assert parse_region("chr:alt") == ("chr:alt", 0, None)
    assert parse_region("HLA:01", names=["HLA:01"]) == ("HLA:01", 0, None)
    assert parse_region("HLA:01", names=["HLA"]) == ("HLA", 0, None)
    assert parse_region("{HLA:01}") == ("HLA:01", 0, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chr1:0-5", "count from 1"),
        ("chr1:5-4", "ends before it starts"),
        ("chr1:-5", "not a range"),
        ("chr1:1-2-3", "not a range"),
        ("chr1:1..5", "not a range"),
        ("chr1:", "not a range"),
        ("{chr1}:", "not a range"),
        ("{chr1}:x", "not a range"),
        ("{chr1", "after '{'"),
        ("{chr1}5", "after '{'"),
        (":1-5", "no record name"),
        ("", "no record name"),
    ],
)
def test_ranges_that_are_none(text: str, said: str) -> None:
    with pytest.raises(SequenceError) as caught:
        parse_region(text)
    assert said in str(caught.value)
