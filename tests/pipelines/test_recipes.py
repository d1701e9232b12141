"""Recipes: configurations parse strictly, small versions learn, captured steps are plain steps."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from helpers import assert_close
from mambacore import LanguageModel, ModelConfig, UsageError
from mambacore.tasks import InductionHeads, SelectiveCopying
from mambapipelines.metrics_file import read_rows
from mambapipelines.recipes import RECIPES
from mambapipelines.recipes.captured import CapturedStep, adamw, set_learning_rate
from mambapipelines.recipes.command import CONFIGS, load_config, main
from mambapipelines.recipes.decoding import Decoder
from mambapipelines.recipes.questions import accuracy_on, answers_of

NAMES = [recipe.name for recipe in RECIPES]


def _run(name: str, out: Path, *more: str) -> tuple[list[dict[str, str]], dict]:
    """The rows and results.json of a small recipe, run by its command."""
    arguments = [name, "--small", "--device", "cpu", "--threads", "1", "--out", str(out), *more]
    assert main(arguments) == 0
    for file in ("figure.png", "environment.json", "table.md"):
        assert (out / file).stat().st_size > 0
    with open(out / "results.csv", newline="") as file:
        return list(csv.DictReader(file)), json.loads((out / "results.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_configurations_parse(name: str) -> None:
    full, small = load_config(name), load_config(name, small=True)
    assert full != small
    assert not getattr(small, "changes", {})  # they would undo what makes it small
    for folder in (CONFIGS, CONFIGS / "small"):
        # What the file says is what the configuration holds.
        for key in yaml.safe_load((folder / f"{name}.yaml").read_text()):
            assert hasattr(full, key)


def test_every_configuration_belongs_to_a_recipe() -> None:
    for folder in (CONFIGS, CONFIGS / "small"):
        assert sorted(path.stem for path in folder.glob("*.yaml")) == sorted(NAMES)


@pytest.mark.parametrize(
    "overrides",
    [
        ["--training.stepz", "5"],
        ["--training.steps", "0"],
        ["--training.steps", "many"],
        ["--unknown", "1"],
        ["--config", "missing.yaml"],
    ],
)
def test_what_no_configuration_has_is_refused(overrides: list[str]) -> None:
    with pytest.raises(UsageError):
        load_config("induction", overrides=overrides)


def test_overrides_reach_the_configuration() -> None:
    config = load_config("induction", overrides=["--training.steps", "5", "--seeds", "[7]"])
    assert (config.training.steps, config.seeds) == (5, (7,))
    assert config.training.batch == load_config("induction").training.batch


def test_the_list_and_bad_usage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == NAMES
    assert main(["inducton"]) == 2
    assert "Did you mean induction?" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("{}")
    assert main(["induction", "--small", "--out", str(tmp_path)]) == 2
    assert "already holds results" in capsys.readouterr().err
    assert main(["mtdna", "--small", "--out", str(tmp_path / "a"), "--device", "cpu"]) == 2
    assert "--data DIR" in capsys.readouterr().err


def test_induction_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, results = _run("induction", tmp_path / "out")
    (training,) = results["trainings"]
    losses = [loss for _, loss in training["losses"]]
    # Guessing is right 1 time in 7, with a loss of 1.9.
    assert losses[-1] < 0.5 < 1.5 < losses[0]
    scores = {int(row["length"]): float(row["accuracy"]) for row in rows}
    assert scores[12] > 0.9
    assert scores[48] > 0.5
    assert capsys.readouterr().out.startswith("| mixer | seed | 12 |")


def test_copying_learns(tmp_path: Path) -> None:
    rows, results = _run("copying", tmp_path / "out")
    losses = [loss for _, loss in results["trainings"][0]["losses"]]
    # Guessing is right 1 time in 4, with a loss of 1.4.
    assert losses[-1] < 0.3 * losses[0]
    assert float(rows[0]["accuracy"]) > 0.9


def test_efficiency_measures(tmp_path: Path) -> None:
    rows, _ = _run("efficiency", tmp_path / "out")
    assert {row["what"] for row in rows} == {"generation", "memory", "forward"}
    held = {
        (row["model"], row["tokens"]): float(row["state_mib"])
        for row in rows
        if row["what"] == "memory"
    }
    assert held["mamba", "8"] == held["mamba", "16"]
    assert held["transformer", "8"] < held["transformer", "16"]
    assert all(float(row["tokens_per_s"]) > 0 for row in rows if row["what"] == "generation")


def _letters(random: np.random.Generator, share: float, bases: int) -> str:
    """Random bases of which 2 `share` are A or T."""
    return "".join(random.choice(list("ATGC"), bases, p=[share, share, 0.5 - share, 0.5 - share]))


def _fake_encode(folder: Path, *more: tuple[str, float]) -> Path:
    """Two species (and more) that differ in composition, in the layout of the real data."""
    random = np.random.default_rng(0)
    for region, bases in (("ENm001", 6000), ("ENm002", 2000)):
        target = folder / "dna" / "encode_may2005" / region
        target.mkdir(parents=True)
        for name, share in (("cow", 0.4), ("dog", 0.1), *more):
            letters = _letters(random, share, bases)
            (target / f"{name}.{region}.fa").write_text(f">{name}|{region}\n{letters}\n")
    return folder


def _fake_mtdna(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for part, count in (("vertebrates", 12), ("new_vertebrates_test", 4)):
        target = folder / "dna" / "mtdna" / part
        target.mkdir(parents=True)
        for name, share in (("Birds", 0.4), ("Fish", 0.1)):
            records = [f">{part}{name}{i}\n{_letters(random, share, 500)}" for i in range(count)]
            (target / f"{name}.fa").write_text("\n".join(records) + "\n")
    return folder


def _fake_apes(folder: Path) -> Path:
    random = np.random.default_rng(0)
    target = folder / "dna" / "great_apes"
    target.mkdir(parents=True)
    for name, share in (("gorilla_gorilla", 0.4), ("homo_sapiens", 0.1)):
        records = [
            f">{name}|c{i}|x|6:{1000 * i}-{1000 * i + 500}(+)\n{_letters(random, share, 500)}"
            for i in range(16)
        ]
        (target / f"{name}.fa").write_text("\n".join(records) + "\n")
    return folder


def test_species_learns_and_pretrains(tmp_path: Path) -> None:
    data = _fake_encode(tmp_path / "data")
    rows, results = _run("encode-ablation", tmp_path / "out", "--data", str(data))
    assert len(rows) == 4  # two variants, two windows
    assert all(float(row["macro_accuracy"]) > 0.9 for row in rows)
    assert all(float(row["chance"]) == 0.5 for row in rows)
    assert all(float(row["baseline_macro_accuracy"]) > 0.5 for row in rows)
    assert len(results["evaluations"]) == 4
    environment = tmp_path / "out" / "runs" / "pretrained-0-64" / "environment.json"
    assert json.loads(environment.read_text())["init"]


@pytest.mark.parametrize(
    ("name", "make"),
    [("species-length", _fake_encode), ("mtdna", _fake_mtdna), ("great-apes", _fake_apes)],
)
def test_other_recipes_on_species_learn(name: str, make: Any, tmp_path: Path) -> None:
    rows, _ = _run(name, tmp_path / "out", "--data", str(make(tmp_path / "data")))
    assert len(rows) == 2
    assert all(float(row["macro_accuracy"]) > 0.9 for row in rows)
    assert all(float(row["chance"]) == 0.5 and int(row["windows"]) > 10 for row in rows)
    (metrics,) = (tmp_path / "out" / "runs").glob("*/metrics.csv")
    losses = [row["train/loss"] for row in read_rows(metrics) if "train/loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    assert losses[-1] < 0.2  # guessing is 0.69


def test_groups_of_species_are_scored_with_one_model(tmp_path: Path) -> None:
    data = _fake_encode(tmp_path / "data", ("human", 0.25))
    rows, _ = _run("encode-mammals", tmp_path / "out", "--data", str(data))
    trained = [("64", "64"), ("64", "128"), ("128", "128")]  # at, scored at
    assert [(row["trained_window"], row["window"], row["group"]) for row in rows] == [
        (*pair, group) for pair in trained for group in ("two", "three")
    ]
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 2
    chances = {row["group"]: float(row["chance"]) for row in rows}
    assert chances == pytest.approx({"two": 1 / 2, "three": 1 / 3})
    accuracy = {(row["group"], row["window"]): float(row["macro_accuracy"]) for row in rows}
    assert accuracy["two", "128"] > 0.9
    assert accuracy["three", "128"] > 0.7
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| two: mamba, trained at 128 | 0 | - |" in table
    assert "| three: best k-mer classifier |" in table


def test_language_models_learn(tmp_path: Path) -> None:
    data = _fake_encode(tmp_path / "data")
    rows, results = _run("perplexity", tmp_path / "out", "--data", str(data))
    bits = {row["context"]: float(row["bits"]) for row in rows if row["variant"] == "mamba"}
    # Two bits a base is guessing; the composition alone is 1.72 and 1.97 bits for the two species.
    assert bits["256"] < 1.93
    assert rows[-1]["variant"] == "Markov, order 2"
    assert results["scores"][0]["windows"] > 0


def test_sheets_of_the_real_data(shared_data: Path, tmp_path: Path) -> None:
    from mambabio.records import read_records
    from mambabio.sheet import load_samples
    from mambapipelines.recipes import sheets

    dna = shared_data / "dna"
    sheet = load_samples(sheets.encode_sheet(dna / "encode_may2005", (), tmp_path))
    assert len(sheet.labels) == 23
    for sample in sheet.samples:
        assert sample.path.parent.name == ("ENm002" if sample.split == "test" else "ENm001")
        assert sample.path.name.startswith(sample.label + ".")
    assert len(load_samples(sheets.mtdna_sheet(dna / "mtdna", (), tmp_path)).labels) == 5
    apes = load_samples(sheets.great_apes_sheet(dna / "great_apes", (), tmp_path))
    for label in apes.labels:
        bases, ends = {}, {}
        for sample in (sample for sample in apes.samples if sample.label == label):
            records = list(read_records(sample.path))
            bases[sample.split] = sum(len(record) for record in records)
            places = [sheets.place_of(record.name) for record in records]
            ends[sample.split] = [place[1] for place in places if place and place[0] == "6"]
        assert 0.1 < bases["test"] / (bases["test"] + bases["train"]) < 0.31
        assert max(ends["train"]) < min(ends["test"])


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("gorilla|x.1|gorGor3.1|chr6_31576282_490979:465926-487615(+)", ("6", 32042208)),
        ("homo|x|GRCh37|2:95903645-96104005(-)", ("2", 95903645)),
        ("chr6", None),
    ],
)
def test_places_of_contigs(name: str, place: tuple[str, int] | None) -> None:
    from mambapipelines.recipes.sheets import place_of

    assert place_of(name) == place


@pytest.mark.parametrize("mixer", ["mamba", "s4d", "attention"])
def test_answers_in_chunks_are_those_of_whole_sequences(mixer: str) -> None:
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(vocab_size=16, d_model=16, n_layer=1, mixer=mixer))
    torch.nn.init.normal_(model.embedding.weight)
    for task in (InductionHeads(50), SelectiveCopying(30, recall=4)):
        tokens, answers = task.draw(40)
        whole = answers_of(model, tokens, answers.shape[1], 50)
        for chunk in (7, 16, 36):
            # A near tie may turn over.
            same = whole == answers_of(model, tokens, answers.shape[1], chunk)
            assert same.float().mean() > 0.97


def test_accuracy_counts_every_answer_and_keeps_the_mode() -> None:
    model = _model("cpu")
    task = SelectiveCopying(5, recall=2)
    scores = {accuracy_on(task, model, 50, seed=1, tokens_at_once=n) for n in (450, 451)}
    assert len(scores) == 1
    assert 0 <= scores.pop() < 0.5
    assert model.training


def _model(device: str) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=16, d_model=32, n_layer=3, layers=("mamba", "s4d", "attention"))
    return LanguageModel(config).to(device)


def _train(device: str, capture: bool | None) -> tuple[list[float], LanguageModel, CapturedStep]:
    model = _model(device)
    optimizer = adamw(model, lr=1e-3, weight_decay=0.1)

    def update(tokens: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        logits = model(tokens)[0][:, -1]
        loss = torch.nn.functional.cross_entropy(logits, answers[:, 0])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    step = CapturedStep(update, capture=capture)
    generator = torch.Generator().manual_seed(3)
    losses = []
    for number in range(12):
        set_learning_rate(optimizer, 1e-3 * (1 + number % 3))
        batch = InductionHeads(40).draw(8, generator=generator)
        losses.append(step(batch.tokens.to(device), batch.answers.to(device)).item())
    return losses, model, step


@pytest.mark.gpu
def test_a_captured_step_equals_a_plain_one() -> None:
    plain, expected, _ = _train("cuda", False)
    replayed, got, step = _train("cuda", None)
    assert step.captured, step.refused
    assert_close(torch.tensor(replayed), torch.tensor(plain), 1e-4, "losses")
    for (name, a), b in zip(expected.named_parameters(), got.parameters(), strict=True):
        assert_close(b, a, 2e-3, name)


def test_a_learning_rate_reaches_the_step_on_a_cpu() -> None:
    losses, model, step = _train("cpu", None)
    assert not step.captured
    assert all(np.isfinite(losses))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = adamw(model, lr=1.0)
    set_learning_rate(optimizer, 0.0)
    model(torch.zeros(1, 4, dtype=torch.int64))[0].sum().backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def _decoded(device: str, together: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    from mambacore import generate

    model = _model(device).eval()
    torch.nn.init.normal_(model.embedding.weight, generator=None)
    prompt = torch.randint(0, 16, (5, 9), generator=torch.Generator().manual_seed(1)).to(device)
    expected = generate(model, prompt, 12, temperature=0).tokens
    decoder = Decoder(model, prompt, 21, together=together, tokens_at_once=20)
    decoder.prepare()
    got = torch.cat([decoder.run(4), decoder.run(8)], dim=1)
    with pytest.raises(UsageError, match="room"):
        decoder.run(4)
    return got, expected


def test_a_decoder_makes_what_generate_makes() -> None:
    got, expected = _decoded("cpu")
    assert torch.equal(got, expected)


@pytest.mark.gpu
def test_a_recorded_decoder_makes_what_generate_makes() -> None:
    got, expected = _decoded("cuda")
    # Rounding may turn a near tie: most sequences, not all, must agree to the end.
    assert (got == expected).all(dim=1).sum() >= 4
