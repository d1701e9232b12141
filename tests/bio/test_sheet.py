"""Sample sheets: what is read, and one clear message for each thing that can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from mambabio.errors import SheetError
from mambabio.sheet import Sample, load_samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.fa", "b.fa", "c.fa"):
        (tmp_path / name).write_text(f">{name}\nACGT\n")
    return tmp_path


def sheet(folder: Path, *lines: str, name: str = "sheet.tsv") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def test_a_tsv_is_read_with_paths_relative_to_it(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir("/")
    path = sheet(
        folder,
        "# made by hand",
        "path\tLabel\tsplit\tnote\tregion\tcircular",
        "a.fa\tape\ttrain\tkept\t\tyes",
        "",
        "b.fa\tbat\t\tkept\tb.fa:2-3\t",
        "c.fa\tape\tTest",
    )
    read = load_samples(path)
    assert read.labels == ("ape", "bat")
    assert read.samples == (
        Sample("ape", folder / "a.fa", "train", None, True, row=3),
        Sample("bat", folder / "b.fa", None, "b.fa:2-3", None, row=5),
        Sample("ape", folder / "c.fa", "test", None, None, row=6),
    )


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_a_csv_with_quotes_and_windows_line_ends_is_read(folder: Path, start: str) -> None:
    (folder / "a, b.fa").write_text(">x\nAC\n")
    path = folder / "s.csv"
    path.write_bytes(f'{start}label,path\r\nape,"a, b.fa"\r\nbat,b.fa\r\n'.encode())
    assert [s.path.name for s in load_samples(path).samples] == ["a, b.fa", "b.fa"]


HEADER = "label\tpath\tsplit\tregion\tcircular"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], ["empty", "label"]),
        ([HEADER], ["no rows"]),
        (["label\tfile", "ape\ta.fa"], ["'path'", "line 1", "'label', 'file'"]),
        (["label\tpath\tpath", "ape\ta.fa\tb.fa"], ["'path' twice"]),
        ([HEADER, "\ta.fa"], ["line 2", "label is empty"]),
        ([HEADER, "ape\t"], ["line 2", "path is empty", "'ape'"]),
        ([HEADER, "ape\ta.fa", "ape\tz.fa"], ["line 3", "'z.fa' does not exist", "looked for"]),
        ([HEADER, "ape\t."], ["line 2", "is a folder"]),
        ([HEADER, "ape\ta.fa\tdev"], ["line 2", "'dev'", "train, val, test"]),
        ([HEADER, "ape\ta.fa\ttrain\t\tmaybe"], ["line 2", "'maybe'", "yes and no"]),
        ([HEADER, "ape\ta.fa\ttrain\tx:9-2"], ["line 2", "9-2"]),
        ([HEADER, "ape\ta.fa\ttrain\tx:1-2\tyes"], ["line 2", "circular"]),
        (["label\tpath", "ape\ta.fa\ttrain"], ["line 2", "3 fields", "has 2"]),
        ([HEADER, "ape\ta.fa", "bat\tb.fa\ttest"], ["line 3", "'bat'", "no training rows", "ape"]),
    ],
)
def test_what_is_wrong_is_named_with_its_row(
    folder: Path, lines: list[str], told: list[str]
) -> None:
    path = sheet(folder, *lines)
    with pytest.raises(SheetError) as error:
        load_samples(path)
    for part in [str(path), *told]:
        assert part in str(error.value)


def test_a_binary_or_missing_sheet_is_refused(folder: Path) -> None:
    (folder / "s.tsv").write_bytes(b"\x1f\x8b\x00\xff\xfe")
    with pytest.raises(SheetError, match="not a text table"):
        load_samples(folder / "s.tsv")
    with pytest.raises(SheetError, match="no such sample sheet"):
        load_samples(folder / "nothing.tsv")


@pytest.mark.parametrize(
    "rows",
    [
        ("ape\ta.fa\ttrain", "ape\ta.fa\ttest"),
        ("ape\ta.fa\ttrain", "ape\t./a.fa\ttest"),
        ("ape\ta.fa\ttrain", "ape\tlink.fa\ttest"),
        ("ape\ta.fa\ttrain", "bat\ta.fa\ttrain"),
        ("ape\ta.fa\ttrain\tx", "ape\ta.fa\ttest"),
        ("ape\ta.fa\ttrain\tx:1-10", "ape\ta.fa\ttest\tx:10-20"),
        ("ape\ta.fa\ttrain\tx", "ape\ta.fa\ttest\tx:10-20"),
        ("ape\ta.fa\ttrain\tx:15", "ape\ta.fa\ttest\tx:10-20"),
    ],
)
def test_one_sequence_in_two_rows_is_refused(folder: Path, rows: tuple[str, str]) -> None:
    (folder / "link.fa").symlink_to(folder / "a.fa")
    with pytest.raises(SheetError, match="line 3.*listed before \\(line 2\\)"):
        load_samples(sheet(folder, HEADER, *rows))


def test_regions_that_do_not_overlap_may_stand_in_different_splits(folder: Path) -> None:
    rows = ("ape\ta.fa\ttrain\tx:1-10", "ape\ta.fa\ttest\tx:11-20", "ape\ta.fa\tval\ty")
    assert len(load_samples(sheet(folder, HEADER, *rows)).samples) == 3


def test_known_labels_keep_their_order_and_refuse_others(folder: Path) -> None:
    path = sheet(folder, HEADER, "bat\tb.fa\ttest")
    assert load_samples(path, labels=("cow", "bat")).labels == ("cow", "bat")
    assert load_samples(path).labels == ("bat",)
    with pytest.raises(SheetError, match="unknown label 'bat'.*ape, cow"):
        load_samples(path, labels=("ape", "cow"))


def test_a_folder_of_files_sub_folders_or_splits(folder: Path) -> None:
    (folder / "notes.txt").write_text("not a sequence")
    (folder / "a.2.fa.gz").write_text("")
    assert [s.label for s in load_samples(folder).samples] == ["a", "a", "b", "c"]
    nested = folder / "nested"
    for split, label in (("train", "ape"), ("train", "bat"), ("test", "ape")):
        (nested / split / label).mkdir(parents=True)
        (nested / split / label / "x.fna").write_text(">x\nAC\n")
    found = [(s.split, s.label) for s in load_samples(nested).samples]
    assert found == [("test", "ape"), ("train", "ape"), ("train", "bat")]
    assert load_samples(nested / "train").labels == ("ape", "bat")
    with pytest.raises(SheetError, match="labels are unclear"):
        load_samples(folder_with_both(folder))
    (folder / "empty").mkdir()
    with pytest.raises(SheetError, match="holds no sequence files"):
        load_samples(folder / "empty")


def folder_with_both(folder: Path) -> Path:
    (folder / "both" / "ape").mkdir(parents=True)
    (folder / "both" / "ape" / "x.fa").write_text(">x\nAC\n")
    (folder / "both" / "y.fa").write_text(">y\nAC\n")
    return folder / "both"
