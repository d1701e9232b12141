"""GenBank, EMBL and the rest, through Biopython."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from record_cases import failure, letters

from mambabio.alphabet import decode
from mambabio.records import read_records, stream_records


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
