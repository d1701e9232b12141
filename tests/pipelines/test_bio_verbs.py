"""mambabio from fit to report on small made-up sequences."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from bio_cli import SMALL, random_fasta, run_cli
from test_resume import assert_same, outcome

from helpers import assert_close
from mambabio.windows import TrainingWindows
from mambacore.inputs import file_sha256 as sha256
from mambapipelines.checkpoints import read


def test_fit_leaves_a_complete_run(trained, sheet):
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "metrics.csv", "environment.json", "checkpoints", "model"} <= names
    assert "baselines-128.npz" in names
    assert {p.name for p in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["data"]["samples"] == str(sheet)
    assert config["trainer"]["max_steps"] == 12
    environment = json.loads((trained / "environment.json").read_text())
    inputs = {Path(entry["path"]).name: entry["sha256"] for entry in environment["inputs"]}
    assert inputs["sheet.tsv"] == sha256(sheet)
    assert inputs["rich_train.fa"] == sha256(sheet.parent / "rich_train.fa")
    assert environment["finished"]
    assert environment["command"]


def test_fit_refuses_a_used_folder_and_a_finished_run(trained, sheet, capsys):
    code, _, err = run_cli(capsys, "fit", "--data.samples", sheet, "--run", trained, *SMALL)
    assert code == 2
    assert "--resume" in err
    code, _, err = run_cli(capsys, "fit", "--resume", trained)
    assert code == 2
    assert "nothing to resume" in err


def test_fit_can_be_repeated_and_prolonged(tmp_path, trained, capsys):
    """The run's own config makes the same run; more steps go on from its end."""
    again = tmp_path / "again"
    code, out, err = run_cli(capsys, "fit", "--config", trained / "config.yaml", "--run", again)
    assert (code, out) == (0, ""), err
    assert_same(outcome(again), outcome(trained))
    weights = "model/model.safetensors"
    assert (again / weights).read_bytes() == (trained / weights).read_bytes()
    code, _, err = run_cli(capsys, "fit", "--resume", again, "--trainer.max_steps", "20")
    assert code == 0, err
    assert outcome(again)[0]["global_step"] == 20


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_and_resumed_is_the_same(
    tmp_path, trained, sheet, capsys, monkeypatch, signum, code
):
    real = TrainingWindows.batch

    def interrupting(self, step, *rest):
        if step == 7:
            os.kill(os.getpid(), signum)
        return real(self, step, *rest)

    run = tmp_path / "run"
    monkeypatch.setattr(TrainingWindows, "batch", interrupting)
    got, out, err = run_cli(capsys, "fit", "--data.samples", sheet, "--run", run, *SMALL)
    assert (got, out) == (code, "")
    assert f"Continue with: --resume {run}" in err
    assert not (run / "model").exists()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    got, _, err = run_cli(capsys, "fit", "--resume", "run", "--data.num_workers", "2")
    assert got == 0, err
    assert_same(outcome(run), outcome(trained))
    weights = "model/model.safetensors"
    assert (run / weights).read_bytes() == (trained / weights).read_bytes()
    resumed = json.loads((run / "environment.json").read_text())["resumed"]
    assert resumed[0]["overrides"] == {"data.num_workers": 2}


@pytest.mark.slow
def test_two_ranks_see_what_one_sees(tmp_path, sheet, capsys):
    """Half the tokens on each of two ranks: the same global batches, so the same weights."""
    base = ["fit", "--data.samples", str(sheet), *SMALL, "--data.baselines", "false", "--run"]
    assert run_cli(capsys, *base, tmp_path / "one")[0] == 0
    options = ["--data.tokens", "512", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = [
        sys.executable,
        "-m",
        "mambapipelines",
        "bio",
        *base,
        str(tmp_path / "two"),
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    weights = [read(tmp_path / run / "checkpoints/last.ckpt") for run in ("one", "two")]
    for name, value in weights[0]["state_dict"].items():
        assert_close(weights[1]["state_dict"][name], value, 1e-3, name)


def test_evaluate_prints_one_json_object(trained, sheet, capsys):
    code, out, err = run_cli(
        capsys, "evaluate", "--model", trained, "--samples", sheet, "--split", "test", "--json"
    )
    assert code == 0, err
    result = json.loads(out)
    assert result["windows"] == 2 * 3 * (700 // 128)
    assert result["chance"] == 0.5
    wanted = {"accuracy", "macro_accuracy", "interval", "baseline", "dropped", "per_class"}
    assert wanted <= result.keys()
    assert result["n_only"] == 0.5  # these sequences hold no N
    assert (trained / "evaluation" / "test-128.json").is_file()
    code, out, _ = run_cli(
        capsys, "evaluate", "--model", trained / "model", "--samples", sheet, "--no-baseline"
    )
    assert code == 0
    assert "chance" in out


def test_classify_writes_a_table(tmp_path, trained, sheet, capsys, monkeypatch):
    fasta = sheet.parent / "rich_test.fa"
    code, out, err = run_cli(capsys, "classify", "--model", trained, fasta, "--all")
    assert code == 0, err
    lines = [line.split("\t") for line in out.splitlines()]
    assert lines[0] == ["record", "length", "label", "probability", "poor", "rich"]
    assert [line[0] for line in lines[1:]] == ["rich_test0", "rich_test1", "rich_test2"]
    assert all(line[1] == "700" for line in lines[1:])

    target = tmp_path / "out.tsv"
    assert run_cli(capsys, "classify", "--model", trained, fasta, "--all", "-o", target)[:2] == (
        0,
        "",
    )
    assert target.read_text() == out

    class Stdin:
        buffer = io.BytesIO(fasta.read_bytes())

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert run_cli(capsys, "classify", "--model", trained, "-", "--all")[1] == out

    _, out, _ = run_cli(capsys, "classify", "--model", trained, fasta, "--min-probability", "1")
    assert {line.split("\t")[2] for line in out.splitlines()[1:]} == {"unclassified"}


@pytest.mark.parametrize("extra", [("--whole",), ("--both-strands", "--batch-size", "2")])
def test_classify_options(tmp_path, trained, capsys, extra):
    fasta = random_fasta(tmp_path / "x.fa", 3, records=2, length=5000)
    code, out, err = run_cli(
        capsys, "classify", "--model", trained, fasta, "--threads", "1", "--device", "cpu",
        "--precision", "float32", *extra,
    )  # fmt: skip
    assert code == 0, err
    assert len(out.splitlines()) == 3


def test_report_and_info(trained, sheet, capsys):
    run_cli(capsys, "evaluate", "--model", trained, "--samples", sheet, "--no-baseline")
    code, out, err = run_cli(capsys, "report", trained)
    assert code == 0, err
    page = Path(out.strip())
    assert page.is_file()
    assert {"training.png", "confusion.png"} <= {p.name for p in page.parent.iterdir()}
    assert list(page.parent.glob("*_mqc.json"))
    assert "runs of N alone" not in page.read_text()  # --no-baseline
    code, out, _ = run_cli(capsys, "info", trained, "--json")
    assert json.loads(out)["labels"] == ["poor", "rich"]
    code, out, _ = run_cli(capsys, "info")
    assert code == 0
    assert "backends" in out


def test_simulate_gives_a_sheet(tmp_path, capsys):
    code, out, _ = run_cli(
        capsys, "simulate", "--out", tmp_path / "g", "--bases", "30000", "--chromosomes", "3"
    )
    assert code == 0
    assert Path(out.strip()).is_file()


def test_split_deals_records(tmp_path, sheet, capsys):
    code, out, err = run_cli(
        capsys, "split", sheet, "--out", tmp_path / "new.tsv", "--fractions", "0.6", "0.2", "0.2"
    )
    assert code == 0, err
    assert out.strip() == str(tmp_path / "new.tsv")
    rows = [line.split("\t") for line in (tmp_path / "new.tsv").read_text().splitlines()[1:]]
    assert {row[2] for row in rows} == {"train", "val", "test"}
    assert {row[0] for row in rows} == {"rich", "poor"}
    assert (tmp_path / "new.tsv.duplicates.tsv").is_file()
    code, _, err = run_cli(capsys, "split", sheet, "--fractions", "0.6", "0.2", "0.9")
    assert code == 2
    assert not list(sheet.parent.glob("*.split.tsv*"))
