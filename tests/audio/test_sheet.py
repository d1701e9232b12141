"""Sheets, folders and patterns of recordings; which of them are held out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaaudio.sheet import load_samples
from mambaaudio.split import Unit, hold_out
from mambacore.errors import DataError


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def _sheet(folder: Path, text: str) -> Path:
    (folder / "sheet.tsv").write_text(text)
    return folder / "sheet.tsv"


def test_a_sheet(tmp_path: Path) -> None:
    _touch(tmp_path, "a.wav", "b.wav", "c.wav", "d.wav")
    path = _sheet(
        tmp_path,
        "path\tlabel\tspeaker\tsplit\tnotes\n# a comment\na.wav\tdog\tann\t\tx\n"
        "b.wav\tcat\tbob\ttrain\n\nc.wav\tcat\tcid\ttest\nd.wav\t\t\tval\n",
    )
    sheet = load_samples(path)
    assert (sheet.labels, sheet.speakers) == (("cat", "dog"), ("ann", "bob"))
    assert [s.split for s in sheet.samples] == [None, "train", "test", "val"]
    assert [sheet.label_id(s.label) for s in sheet.samples] == [2, 1, 1, 0]
    # A test speaker whom training does not know counts as unknown.
    assert [sheet.speaker_id(s.speaker) for s in sheet.samples] == [1, 2, 0, 0]
    assert [s.row for s in sheet.samples] == [3, 4, 6, 7]


def test_known_labels_stay_in_their_order(tmp_path: Path) -> None:
    _touch(tmp_path, "a.wav", "b.wav")
    path = _sheet(tmp_path, "path\tlabel\na.wav\tdog\nb.wav\t\n")
    assert load_samples(path, labels=("dog", "cat")).label_id("dog") == 1
    with pytest.raises(DataError, match="unknown label 'dog'.*knows cat"):
        load_samples(path, labels=("cat",))
    with pytest.raises(DataError, match="without labels"):
        load_samples(path, labels=())


def test_folders_and_patterns(tmp_path: Path) -> None:
    _touch(tmp_path, "x/b.flac", "x/y/a.WAV", "x/notes.txt", "x/.hidden.wav")
    names = [s.path.name for s in load_samples(tmp_path / "x").samples]
    assert sorted(names) == ["a.WAV", "b.flac"]
    assert len(load_samples(tmp_path / "x" / "**" / "*").samples) == 2
    assert [s.path.name for s in load_samples(tmp_path / "x" / "b.flac").samples] == ["b.flac"]
    _touch(tmp_path, "z/train/a.wav", "z/test/b.wav")
    assert [s.split for s in load_samples(tmp_path / "z").samples] == ["train", "test"]
    _touch(tmp_path, "z/c.wav")
    with pytest.raises(DataError, match=r"c\.wav"):
        load_samples(tmp_path / "z")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.wav\n", "no column 'path'"),
        ("path\tsplit\na.wav\tdev\n", "line 2: unknown split 'dev'"),
        ("path\nb.wav\n", "line 2: 'b.wav' does not exist"),
        ("path\na.wav\na.wav\n", "line 3: .* listed before \\(line 2\\)"),
        ("path\tlabel\tsplit\na.wav\tx\ttest\nc.wav\ty\ttrain\n", "'x' stands in test"),
        ("path\tlabel\n\tx\n", "line 2: the path is empty"),
        ("path\n", "no rows"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    _touch(tmp_path, "a.wav", "c.wav")
    with pytest.raises(DataError, match=message):
        load_samples(_sheet(tmp_path, text))


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path / "gone", tmp_path / "*.wav", tmp_path):
        with pytest.raises(DataError, match="sound file"):
            load_samples(path)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2)), min_size=2, max_size=40),
    st.floats(0.05, 0.5),
    st.integers(0, 5),
)
def test_whole_recordings_are_held_out(
    sizes: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    """Equal recordings stay together; order does not matter; every label keeps training."""
    units = [Unit(f"{i // 2}", 100 * size, label) for i, (size, label) in enumerate(sizes)]
    units = [Unit(u.digest, units[i // 2 * 2].length, units[i // 2 * 2].label)
             for i, u in enumerate(units)]  # fmt: skip
    whole, ends = hold_out(units, fraction, seed)
    held = {units[i].digest for i in whole}
    assert whole == {i for i, u in enumerate(units) if u.digest in held}
    assert bool(whole) != bool(ends)
    if ends:
        # Only where all of them are large.
        assert set(ends) == set(range(len(units)))
        assert all(0 < ends[i] < units[i].length for i in ends)
    else:
        again, _ = hold_out(units[::-1], fraction, seed)
        assert {units[::-1][i].digest for i in again} == held
        labels = {u.label for i, u in enumerate(units) if i not in whole}
        assert labels == {u.label for u in units} or len(held) == 1


def test_one_recording_gives_its_end() -> None:
    assert hold_out([Unit("a", 1000)], 0.2, 3) == (set(), {0: 800})
    assert hold_out([Unit("a", 1000)], 0.0, 3) == (set(), {})


def test_by_speaker() -> None:
    units = [Unit(str(i), 10, 0, 1 + i % 4) for i in range(20)]
    whole, ends = hold_out(units, 0.1, 0, "speaker")
    assert not ends
    assert len({units[i].speaker for i in whole}) == 1
    assert len(whole) == 5
    with pytest.raises(DataError, match="two or more speakers"):
        hold_out([Unit("a", 10, 0, 1)], 0.1, 0, "speaker")
