"""The page, its figures and the MultiQC files of a run folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mambabio.evaluation import BaselineScore, Evaluation, SubsetScore
from mambabio.metrics import bootstrap_interval, reliability, score
from mambabio.report import main_evaluation, read_curves, read_evaluations, write_report

LABELS = ("fish", "frogs", "snakes")


def made_up(split: str = "test", window: int = 1024, *, baseline: bool = True) -> Evaluation:
    """An evaluation of random calls; the class `snakes` never occurs."""
    rng = np.random.default_rng(window)
    true = rng.integers(0, 2, 300)
    called = np.where(rng.random(300) < 0.7, true, rng.integers(0, 3, 300))
    groups = np.arange(300) // 10
    right = called == true
    s = score(true, called, LABELS)
    interval = bootstrap_interval(right, true, groups, samples=50)
    rivals = (BaselineScore("linear", 6, 0.6, 0.55), BaselineScore("naive Bayes", 10, 0.7, 0.65))
    return Evaluation(
        split=split, window=window, trained_window=1024, labels=LABELS, windows=300, records=30,
        bases=300 * window, accuracy=s.accuracy, macro_accuracy=s.macro_accuracy,
        interval=interval, f1=s.f1, mcc=s.mcc, chance=1 / 3, majority=0.5,
        baseline=rivals[1] if baseline else None,
        advantage=(s.macro_accuracy - 0.65, interval) if baseline else None,
        baselines=rivals if baseline else (),
        no_baseline=None if baseline else "the sheet has no training rows",
        per_class=s.per_class, confusion=s.confusion,
        reliability=reliability(rng.uniform(0.4, 1, 300), right), temperature=1.5,
        dropped={"test record under 64 bases": 2} if baseline else {},
        excluding_near_duplicates=SubsetScore(25, 250, 0.7, 0.69, interval, 0.6)
        if baseline else None,
    )  # fmt: skip


def run_folder(folder: Path) -> Path:
    run = folder / "apes"
    run.mkdir()
    rows = ["epoch,lr,step,train/accuracy,train/loss,train/window,val/loss,val/macro_accuracy"]
    for step in range(0, 400, 10):
        rows.append(f"0,{3e-3 * (1 - step / 400)},{step},{step / 800},{2 - step / 400},128,,")
        if step % 100 == 90:
            rows.append(f"0,,{step},,,,{2.1 - step / 400},{step / 700}")
    rows.append("0,,400,nan,,,,")
    (run / "metrics.csv").write_text("\n".join(rows) + "\n")
    for e in (made_up(), made_up(window=4096), made_up("val", baseline=False)):
        (run / "evaluation").mkdir(exist_ok=True)
        (run / "evaluation" / f"{e.stem}.json").write_text(e.to_json())
    return run


@pytest.mark.parametrize("baseline", [True, False])
def test_evaluation_survives_json(baseline: bool) -> None:
    e = made_up(baseline=baseline)
    text = e.to_json()
    assert Evaluation.from_dict(json.loads(text)).to_json() == text
    values = json.loads(text)
    assert values["interval"] == [e.interval.low, e.interval.high]
    assert values["per_class"]["snakes"]["recall"] is None
    assert (values["baseline"] is not None) == baseline
    for key in ("accuracy", "macro_accuracy", "chance", "windows", "dropped", "per_class"):
        assert key in values
    del values["chance"]
    with pytest.raises(ValueError, match="no evaluation"):
        Evaluation.from_dict(values)


def test_no_accuracy_without_chance_and_baseline() -> None:
    text = made_up().to_text()
    for wanted in ("chance", "0.333", "naive Bayes, 10-mers (the baseline)", "0.650", "linear"):
        assert wanted in text
    assert "Left out: 2 x test record under 64 bases." in text
    assert "Without 5 records" in text
    bare = made_up(baseline=False).to_text()
    assert "chance" in bare
    assert "No k-mer baseline: the sheet has no training rows." in bare


def test_files_of_an_evaluation(tmp_path: Path) -> None:
    e = made_up()
    paths = e.save(tmp_path / "new" / "folder")
    assert [p.name for p in paths] == [
        "test-1024.json", "test-1024-confusion.tsv", "test-1024-confusion.png",
        "test-1024-calibration.png",
    ]  # fmt: skip
    rows = [line.split("\t") for line in paths[1].read_text().splitlines()]
    assert rows[0][1:] == list(LABELS)
    assert [row[0] for row in rows[1:]] == list(LABELS)
    assert np.array_equal(np.array([row[1:] for row in rows[1:]], int), e.confusion)
    again = e.save(tmp_path / "other")
    for one, other in zip(paths, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_size > 0


def test_report_of_a_whole_run(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    page = write_report(run)
    assert page == run / "report" / "report.md"
    text = page.read_text()
    for figure in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text):
        assert (page.parent / figure).read_bytes().startswith(b"\x89PNG")
    assert text.count("![") == 3
    assert "| 4,096 |" in text
    assert "chance" in text
    assert "naive Bayes" in text
    assert not [p for p in page.parent.iterdir() if p.name.startswith(".")]
    assert read_evaluations(run / "evaluation")[0].split == "test"


def test_multiqc_files(tmp_path: Path) -> None:
    folder = write_report(run_folder(tmp_path), tmp_path / "out", name="sample 1").parent
    contents = {p.name: json.loads(p.read_text()) for p in folder.glob("*_mqc.json")}
    assert set(contents) == {
        f"mambabio_{x}_mqc.json"
        for x in ("loss", "accuracy", "confusion", "windows", "generalstats")
    }
    assert len({c["id"] for c in contents.values()}) == 5
    for name, content in contents.items():
        assert content["plot_type"] in ("linegraph", "heatmap", "generalstats")
        assert content["data"]
        assert name == f"{content['id']}_mqc.json"
    stats = contents["mambabio_generalstats_mqc.json"]["data"]["sample 1"]
    assert stats["chance"] == pytest.approx(1 / 3)
    assert stats["baseline"] == 0.65
    lines = contents["mambabio_windows_mqc.json"]["data"]
    assert set(lines) == {"sample 1", "chance", "k-mer baseline"}
    assert list(lines["sample 1"]) == ["1024", "4096"]
    heat = contents["mambabio_confusion_mqc.json"]["data"]
    assert sum(heat["fish"].values()) == pytest.approx(1)


def test_partial_runs(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    (run / "metrics.csv").unlink()
    assert "![loss" not in write_report(run).read_text()
    curves_only = tmp_path / "curves"
    curves_only.mkdir()
    (curves_only / "metrics.csv").write_text("step,val/macro_accuracy\n10,0.5\n")
    text = write_report(curves_only).read_text()
    assert "No evaluation is saved" in text
    with pytest.raises(ValueError, match="nothing to report"):
        write_report(tmp_path / "missing")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    (run / "evaluation" / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json"):
        write_report(run)
    (run / "metrics.csv").write_text("step,lr\n1,x\n")
    with pytest.raises(ValueError, match="line 2: lr is 'x'"):
        read_curves(run / "metrics.csv")
    (run / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no column 'step'"):
        read_curves(run / "metrics.csv")


def test_curves_leave_out_empty_cells(tmp_path: Path) -> None:
    curves = read_curves(run_folder(tmp_path) / "metrics.csv")
    assert curves["val/macro_accuracy"][0] == [90.0, 190.0, 290.0, 390.0]
    assert len(curves["train/accuracy"][0]) == 40  # without the NaN


def test_main_evaluation_prefers_test_at_the_trained_length() -> None:
    several = [made_up("val"), made_up(window=256), made_up(), made_up(window=4096)]
    assert main_evaluation(several) is several[2]
    assert main_evaluation(several[:1]) is several[0]
    assert main_evaluation([]) is None
