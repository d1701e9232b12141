"""Bad input: exit code 1 or 2, one clear message, nothing half-written."""

from __future__ import annotations

import errno
import gzip
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bio_cli import SMALL, make_sheet, random_fasta, run_cli


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated_gzip(path: Path) -> None:
    plain = random_fasta(path.with_suffix(".plain"), 1, records=40).read_bytes()
    whole = gzip.compress(plain)
    path.write_bytes(whole[: len(whole) // 2])


def bgzip_without_its_end(path: Path) -> None:
    import pysam

    plain = random_fasta(path.with_suffix(".plain"), 1, records=40)
    pysam.tabix_compress(str(plain), str(path), force=True)
    path.write_bytes(path.read_bytes()[:-28])


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


def headers_only(path: Path) -> None:
    path.write_text(">a\n>b\n>c\n")


def protein(path: Path) -> None:
    path.write_text(">p\nMKVLLALWQEFPIDSTHRNCYG\n" * 3)


BAD_FILES = [empty, truncated_gzip, bgzip_without_its_end, binary, headers_only, protein]


def assert_one_message(code: int, out: str, err: str, *words: str) -> None:
    assert code in (1, 2), err
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if "error:" in line]
    assert len(errors) == 1, err
    for word in words:
        assert word in errors[0]
    assert out == ""


@pytest.mark.parametrize("make", BAD_FILES, ids=lambda f: f.__name__)
def test_fit_on_a_bad_file(tmp_path, capsys, make):
    sheet = make_sheet(tmp_path / "in")
    make(tmp_path / "in" / "rich_train.fa")
    result = run_cli(capsys, "fit", "--data.samples", sheet, "--run", tmp_path / "run", *SMALL)
    assert_one_message(*result, "rich_train.fa")
    assert result[0] == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("name\tpath\nrich\tx.fa\n", "label"),
        ("label\tpath\tsplit\nrich\trich_train.fa\ttrain\npoor\tpoor_train.fa\ttrain\n"
         "alien\trich_test.fa\ttest\n", "alien"),
        ("label\tpath\nrich\tmissing.fa\n", "missing.fa"),
        ("label\tpath\nrich\trich_train.fa\n", "rich"),
        ("", "sheet.tsv"),
    ],
    ids=["missing column", "unknown label", "missing file", "one label", "empty sheet"],
)  # fmt: skip
def test_fit_on_a_bad_sheet(tmp_path, capsys, text, word):
    sheet = make_sheet(tmp_path / "in")
    sheet.write_text(text)
    result = run_cli(capsys, "fit", "--data.samples", sheet, "--run", tmp_path / "run", *SMALL)
    assert_one_message(*result, word)
    assert not (tmp_path / "run").exists()


def test_fit_without_a_sheet(tmp_path, capsys):
    result = run_cli(capsys, "fit", "--run", tmp_path / "run")
    assert_one_message(*result, "--data.samples")
    result = run_cli(
        capsys, "fit", "--data.samples", tmp_path / "no.tsv", "--run", tmp_path / "run"
    )
    assert_one_message(*result, "no.tsv")
    assert not (tmp_path / "run").exists()


def test_a_window_longer_than_every_sequence(tmp_path, capsys):
    sheet = make_sheet(tmp_path / "in")
    result = run_cli(
        capsys, "fit", "--data.samples", sheet, "--run", tmp_path / "run", "--data.window", 4096
    )
    assert_one_message(*result, "4,096", "longer than every training record")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_written(tmp_path, capsys):
    sheet = make_sheet(tmp_path / "in")
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "run", Path("/proc/run")):
        result = run_cli(capsys, "fit", "--data.samples", sheet, "--run", place, *SMALL)
        assert_one_message(*result, str(place.parent))


def test_a_full_disk_while_a_checkpoint_is_saved(tmp_path, capsys, monkeypatch):
    sheet = make_sheet(tmp_path / "in")
    real = os.replace
    saved = []

    def full(source, target):
        if str(target).endswith(".ckpt"):
            saved.append(target)
            if len(saved) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    result = run_cli(capsys, "fit", "--data.samples", sheet, "--run", tmp_path / "run", *SMALL)
    assert_one_message(*result, "No space left", "checkpoint")
    monkeypatch.undo()
    assert not list((tmp_path / "run").rglob("*.tmp"))
    code, _, err = run_cli(capsys, "fit", "--resume", tmp_path / "run")
    assert code == 0, err


@pytest.mark.parametrize("make", BAD_FILES, ids=lambda f: f.__name__)
def test_classify_a_bad_file(tmp_path, capsys, trained, make):
    make(tmp_path / "x.fa")
    code, _, err = run_cli(
        capsys, "classify", "--model", trained, tmp_path / "x.fa", "-o", tmp_path / "out.tsv"
    )
    assert_one_message(code, "", err, "x.fa")
    assert code == 1
    assert not (tmp_path / "out.tsv").exists()


def test_other_verbs_name_what_is_missing(tmp_path, capsys, trained):
    sheet = make_sheet(tmp_path / "in")
    sequences = tmp_path / "in" / "rich_test.fa"
    cases = [
        (("classify", "--model", "apes", sequences), 2, "no model 'apes'"),
        (("classify", "--model", tmp_path, sequences), 1, "no model in"),
        (("classify", "--model", trained, tmp_path / "none.fa"), 1, "none.fa"),
        (("classify", "--model", trained), 2, "INPUT"),
        (("classify", "--model", trained, sequences, "--min-probability", "2"), 2, "2"),
        (("classify", "--model", trained, sequences, "-o", tmp_path / "no" / "x"), 1, "no"),
        (("classify", "--model", trained, sequences, "--device", "cuda:99"), 2, "cuda:99"),
        (("evaluate", "--model", trained, "--samples", tmp_path / "no.tsv"), 1, "no.tsv"),
        (("evaluate", "--model", trained, "--samples", sheet, "--window", "50000"), 1, "50,000"),
        (("evaluate", "--model", trained, "--samples", sheet, "--out", sheet / "x"), 1, "folder"),
        (("report", tmp_path / "none"), 1, "none"),
        (("info", tmp_path / "none"), 2, "shipped: none"),
        (("simulate", "--out", tmp_path / "s", "--bases", "10"), 2, "10"),
    ]
    for argv, code, word in cases:
        result = run_cli(capsys, *argv)
        assert_one_message(*result, word)
        assert result[0] == code, argv
