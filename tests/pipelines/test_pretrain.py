"""mambabio pretrain: a run like fit's, a model that loads anywhere, a start for classifiers."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from bio_cli import SMALL, random_fasta, run_cli
from test_resume import assert_same, outcome

from mambabio.alphabet import VOCAB_SIZE
from mambabio.classifier import SpeciesClassifier
from mambabio.language import SCORED, LanguageTiles, LanguageWindows
from mambabio.sheet import load_samples
from mambabio.store import build_store
from mambacore import from_pretrained
from mambapipelines.cli import bio
from mambapipelines.metrics_file import read_rows


@pytest.fixture(scope="module")
def pretrained(sheet: Path) -> Path:
    """A finished run of twelve steps."""
    run = sheet.parent / "pretrained"
    arguments = ["pretrain", "--data.samples", str(sheet), "--run", str(run), *SMALL]
    assert bio.main(arguments) == 0
    return run


def test_the_validation_figures_are_those_of_the_exported_model(pretrained, sheet):
    names = {path.name for path in pretrained.iterdir()}
    assert {"config.yaml", "metrics.csv", "environment.json", "checkpoints", "model"} <= names
    rows = [row for row in read_rows(pretrained / "metrics.csv") if "val/bits" in row]
    best = min(rows, key=lambda row: row["val/bits"])
    assert best["val/perplexity"] == pytest.approx(2 ** best["val/bits"], rel=1e-5)
    model = from_pretrained(pretrained / "model")
    assert model.vocab_size == VOCAB_SIZE
    store = build_store(
        load_samples(sheet), pretrained / "cache", n_policy="split", log=lambda line: None
    )
    batch = LanguageTiles(store, "val", 128).batch(slice(None))
    targets = torch.from_numpy(batch.targets).long()
    with torch.no_grad():
        log_p = model(torch.from_numpy(batch.tokens))[0].log_softmax(-1)
    bits = (
        -log_p.gather(2, targets[..., None])[..., 0][targets < SCORED].mean()
        / torch.tensor(2.0).log()
    )
    assert best["val/bits"] == pytest.approx(float(bits), rel=1e-5)


def test_it_learns_the_composition(tmp_path, capsys):
    """GC-rich sequence of independent bases: the loss falls to its entropy, 1.88 bits."""
    fasta = random_fasta(tmp_path / "x.fa", 1, records=4, length=4000, gc=0.7)
    code, out, err = run_cli(
        capsys, "pretrain", "--data.samples", fasta, "--run", tmp_path / "run", *SMALL,
        "--trainer.max_steps", "60", "--trainer.val_check_interval", "60",
        "--data.reverse_complement", "false", "--optimizer.lr", "0.02",
    )  # fmt: skip
    assert (code, out) == (0, ""), err
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    assert next(row["train/bits"] for row in rows if "train/bits" in row) > 3
    assert rows[-1]["val/bits"] < 1.95


def test_interrupted_and_resumed_is_the_same(tmp_path, pretrained, sheet, capsys, monkeypatch):
    real = LanguageWindows.batch

    def interrupting(self, step, *rest):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, step, *rest)

    run = tmp_path / "run"
    monkeypatch.setattr(LanguageWindows, "batch", interrupting)
    code, _, err = run_cli(capsys, "pretrain", "--data.samples", sheet, "--run", run, *SMALL)
    assert code == 143
    assert f"Continue with: --resume {run}" in err
    monkeypatch.undo()
    assert run_cli(capsys, "pretrain", "--resume", run, "--data.num_workers", "1")[0] == 0
    assert_same(outcome(run), outcome(pretrained))
    weights = "model/model.safetensors"
    assert (run / weights).read_bytes() == (pretrained / weights).read_bytes()


def test_a_classifier_starts_from_it(tmp_path, pretrained, sheet, capsys):
    """With a learning rate of nothing the backbone stays what the language model's was."""
    run = tmp_path / "run"
    code, _, err = run_cli(
        capsys, "fit", "--data.samples", sheet, "--run", run, *SMALL, "--model.init", pretrained,
        "--optimizer.lr", "1e-30", "--optimizer.weight_decay", "0", "--trainer.max_steps", "1",
        "--data.baselines", "false",
    )  # fmt: skip
    assert code == 0, err
    language, classifier = (
        from_pretrained(pretrained / "model"),
        SpeciesClassifier.from_pretrained(run),
    )
    assert_same(dict(classifier.backbone.state_dict()), dict(language.backbone.state_dict()))
    assert torch.equal(classifier.embedding.weight, language.embedding.weight)
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init"] == str(pretrained)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model.d_model", "16"), "its d_model is 8, here 16; give --model.d_model 8"),
        (("--model.n_layer", "2"), "give --model.n_layer 1"),
        (("--model.mixer", "s4d"), "give --model.layers"),
        (("--model.mixer_options", "{mamba: {d_conv: 4}}"), "its mixer_options is"),
    ],
)
def test_a_classifier_of_another_architecture_is_refused(
    tmp_path, pretrained, sheet, capsys, options, message
):
    code, _, err = run_cli(
        capsys, "fit", "--data.samples", sheet, "--run", tmp_path / "run", *SMALL,
        "--model.init", pretrained, *options,
    )  # fmt: skip
    assert code == 1
    assert message in err
    assert not (tmp_path / "run").exists()


def test_what_is_no_language_model_is_refused(tmp_path, trained, sheet, capsys):
    arguments = ["--data.samples", sheet, "--run", tmp_path / "run", *SMALL]
    code, _, err = run_cli(capsys, "fit", *arguments, "--model.init", trained)
    assert code == 1
    assert "is not a language model" in err
    code, _, err = run_cli(capsys, "pretrain", *arguments, "--model.mixer", "bidirectional")
    assert code == 2
    assert "sees the base that it shall predict" in err


def test_perplexity_prints_one_json_object(pretrained, sheet, capsys):
    code, out, err = run_cli(
        capsys, "perplexity", "--model", pretrained, "--samples", sheet, "--contexts", "64,128",
        "--scored", "32", "--markov-order", "4", "--windows", "20", "--json",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out)
    assert [score["context"] for score in result["contexts"]] == [64, 128]
    assert (result["windows"], result["bases"]) == (20, 640)
    assert result["markov"]["bits"] < 2.05
    code, out, _ = run_cli(
        capsys, "perplexity", "--model", pretrained / "model", "--samples", sheet, "--contexts",
        "64", "--scored", "32", "--markov-order", "-1",
    )  # fmt: skip
    assert code == 0
    assert "perplexity" in out
