"""Files appear whole or not at all."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambacore.errors import UsageError
from mambapipelines.files import link_or_copy, output
from mambapipelines.metrics_file import MetricsFile, read_rows
from mambapipelines.runs import Run


def test_output_is_a_whole_file_or_standard_output(tmp_path, capsys):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), output(str(target)) as file:
        file.write("half")
        1 / 0  # noqa: B018
    assert target.read_text() == "old"
    with output(str(target)) as file:
        file.write("new")
    assert target.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    for standard in (None, "-"):
        with output(standard) as file:
            file.write("out ")
    assert capsys.readouterr().out == "out out "


def test_a_copy_where_links_are_impossible(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"1" * 100)

    def refuse(source, target):
        raise OSError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "b").read_bytes() == b"1" * 100


numbers = st.one_of(st.integers(-(10**6), 10**6), st.floats(allow_nan=False, allow_infinity=False))


@settings(deadline=None)  # every rewrite waits for the disk
@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from(["train/loss", "val/loss", "lr"]), numbers), max_size=12
    ),
    cut=st.integers(0, 12),
    torn=st.integers(0, 30),
)
def test_metrics_survive_a_torn_line_and_drop_what_comes_after(tmp_path_factory, rows, cut, torn):
    path = tmp_path_factory.mktemp("m") / "metrics.csv"
    rows = [{"step": i, **row} for i, row in enumerate(rows)]
    file = MetricsFile(path)
    for row in rows:
        file.append(row)
    assert read_rows(path) == rows
    with path.open("a") as raw:
        raw.write("99,1.5,2"[: torn % 9])
    again = MetricsFile(path, until=cut)
    assert read_rows(path) == [row for row in rows if row["step"] <= cut]
    again.append({"step": cut + 1, "new": 3})
    assert read_rows(path)[-1] == {"step": cut + 1, "new": 3}


def test_a_used_run_folder_is_refused_with_the_way_out(tmp_path):
    run = Run.create(tmp_path / "r")
    with pytest.raises(UsageError, match="another process"):
        Run.create(tmp_path / "r")
    run.last.write_bytes(b"state")
    run.release()
    with pytest.raises(UsageError, match=r"--resume"):
        Run.create(tmp_path / "r")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        Run.create(tmp_path / "other")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        Run.create(tmp_path / "file")


def test_a_start_that_failed_leaves_nothing(tmp_path):
    run = Run.create(tmp_path / "a" / "r")
    run.write_config("x: 1\n")
    run.cache.mkdir()
    run.release()
    assert not (tmp_path / "a" / "r").exists()
    (tmp_path / "mine").mkdir()
    Run.create(tmp_path / "mine").release()
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_killed_start_can_be_started_again(tmp_path):
    """What kill -9 leaves before the first checkpoint is nobody's work."""
    run = Run.create(tmp_path / "r")
    run.write_config("x: 1\n")
    run.cache.mkdir()
    (run.cache / "store").touch()
    run._lock.close()  # pyright: ignore  the process is gone, its files stay
    Run.create(tmp_path / "r").release()


@pytest.mark.parametrize("what", ["no such folder", "no config.yaml", "no checkpoint"])
def test_nothing_to_resume_is_said(tmp_path, what):
    folder = tmp_path / "r"
    if what != "no such folder":
        folder.mkdir()
    if what == "no checkpoint":
        (folder / "config.yaml").touch()
    with pytest.raises(UsageError, match=f"nothing to resume.*{what}"):
        Run.open(folder)


def test_environment_notes_add_up(tmp_path):
    run = Run.create(tmp_path / "r")
    run.write_environment([{"path": "a", "bytes": 1, "sha256": "x"}], {"dropped": {}})
    run.note(resumed={"started": "1"})
    run.note(resumed={"started": "2"}, finished="now")
    content = json.loads(run.environment.read_text())
    assert [entry["started"] for entry in content["resumed"]] == ["1", "2"]
    assert run.finished
    assert content["packages"]["torch"]
    assert content["inputs"][0]["sha256"] == "x"
