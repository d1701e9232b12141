"""Evaluation on a store: figures against sums by hand, refusals, calibration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mambabio.alphabet import decode, reverse_complement
from mambabio.calibration import negative_log_likelihood
from mambabio.classifier import SpeciesClassifier
from mambabio.classifier_config import ClassifierConfig
from mambabio.evaluate import calibrate, evaluate, window_log_probabilities
from mambabio.evaluation import Evaluation
from mambabio.near_duplicates import known_near_duplicates, near_duplicates
from mambabio.rivals import fit_baselines
from mambabio.scoring import Scorer, normalise
from mambabio.sheet import load_samples
from mambabio.store import SequenceStore, build_store
from mambabio.windows import tile_windows
from mambacore.config import ModelConfig

LABELS = ("ape", "bat", "cow")
WINDOW = 100
# Composition differs a little, so that counting k-mers beats chance but is not perfect.
COMPOSITION = {
    "ape": (0.34, 0.16, 0.16, 0.34),
    "bat": (0.25, 0.25, 0.25, 0.25),
    "cow": (0.18, 0.32, 0.32, 0.18),
}


def build(folder: Path, splits: dict[str, int], labels: tuple[str, ...] = LABELS) -> SequenceStore:
    """A store with `splits[split]` records of 60 to 560 bases a label."""
    rng = np.random.default_rng(7)
    rows = ["label\tpath\tsplit"]
    for split, count in splits.items():
        for label in labels:
            records = [
                f">{label}-{split}-{i}\n"
                + decode(rng.choice(4, rng.integers(60, 560), p=COMPOSITION[label]).astype("u1"))
                for i in range(count)
            ]
            name = f"{label}-{split}.fa"
            (folder / name).write_text("\n".join(records) + "\n")
            rows.append(f"{label}\t{name}\t{split}")
    (folder / "sheet.tsv").write_text("\n".join(rows) + "\n")
    return build_store(
        load_samples(folder / "sheet.tsv", labels=LABELS), folder / "cache", log=lambda _: None
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SequenceStore:
    return build(tmp_path_factory.mktemp("store"), {"train": 30, "val": 12, "test": 12})


@pytest.fixture(scope="module")
def model() -> SpeciesClassifier:
    torch.manual_seed(3)
    config = ClassifierConfig(ModelConfig(d_model=16, n_layer=1), LABELS, window=WINDOW)
    built = SpeciesClassifier(config)
    for parameter in built.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(2)
    return built.eval()


@pytest.fixture(scope="module")
def evaluation(store: SequenceStore, model: SpeciesClassifier) -> Evaluation:
    return evaluate(model, store, samples=200)


def test_figures_are_those_of_the_windows(
    evaluation: Evaluation, store: SequenceStore, model: SpeciesClassifier
) -> None:
    e = evaluation
    assert e.windows == sum(
        max(r.length // WINDOW, 1) for r in store.select("test") if r.length >= 64
    )
    called, true = [], []
    for record in store.select("test"):
        if record.length < 64:
            continue
        for i in range(max(record.length // WINDOW, 1)):
            ids = store.ids(record, i * WINDOW, min(WINDOW, record.length))
            with torch.no_grad():
                called.append(int(model(torch.from_numpy(ids.copy())[None]).argmax()))
            true.append(record.label_id)
    right = np.array(called) == np.array(true)
    assert e.accuracy == pytest.approx(right.mean())
    recalls = [right[np.array(true) == c].mean() for c in range(3)]
    assert e.macro_accuracy == pytest.approx(np.mean(recalls))
    assert [c.recall for c in e.per_class] == pytest.approx(recalls)
    assert e.confusion.sum() == e.windows == len(true)
    assert e.interval.low <= e.macro_accuracy <= e.interval.high
    assert e.interval.groups == e.records
    assert e.chance == pytest.approx(1 / 3)
    assert e.reliability.count.sum() == e.windows
    assert sum(e.dropped.values()) == sum(r.length < 64 for r in store.select("test"))


def test_long_windows_average_their_pieces_as_classify_does(
    store: SequenceStore, model: SpeciesClassifier, tmp_path: Path
) -> None:
    long = 3 * WINDOW
    tiles = tile_windows(store, "test", long)
    log_p = window_log_probabilities(Scorer(model), tiles, piece=WINDOW)
    fasta = tmp_path / "windows.fa"
    batch = tiles.batch(np.arange(len(tiles)))
    rows = zip(batch.tokens, batch.lengths.tolist(), strict=True)
    fasta.write_text("".join(f">{i}\n{decode(ids[:n])}\n" for i, (ids, n) in enumerate(rows)))
    expected = [p.probabilities for p in model.classify(fasta)]
    np.testing.assert_allclose(normalise(log_p), expected, atol=1e-6)
    averaged = evaluate(model, store, window=long, fit_baselines=False, samples=20)
    assert averaged.piece == WINDOW
    assert averaged.accuracy == np.mean(np.argmax(expected, 1) == tiles.labels)
    whole = evaluate(model, store, window=long, fit_baselines=False, samples=20, whole=True)
    direct = window_log_probabilities(Scorer(model), tiles).argmax(1)
    assert whole.piece is None
    assert whole.accuracy == np.mean(direct == tiles.labels)
    assert Evaluation.from_dict(averaged.to_dict()).piece == WINDOW


def test_only_the_sheets_classes_are_candidates(model: SpeciesClassifier, tmp_path: Path) -> None:
    few = build(tmp_path, {"train": 20, "test": 12}, labels=("bat", "cow"))
    tiles = tile_windows(few.narrowed(), "test", WINDOW)
    assert few.labels == LABELS
    log_p = window_log_probabilities(Scorer(model), tiles)
    e = evaluate(model, few, candidates="sheet", samples=20)
    assert e.baseline is not None
    assert e.baseline.macro_accuracy > 0.6
    assert e.labels == ("bat", "cow")
    assert e.chance == 0.5
    assert e.confusion.shape == (2, 2)
    assert e.accuracy == np.mean(log_p[:, 1:].argmax(1) == tiles.labels)
    among_all = evaluate(model, few, fit_baselines=False, samples=20)
    assert among_all.confusion.shape == (3, 3)
    assert e.accuracy >= among_all.accuracy


def test_baselines_see_the_same_windows(evaluation: Evaluation, store: SequenceStore) -> None:
    e = evaluation
    fitted = fit_baselines(store, WINDOW)
    tiles = tile_windows(store, "test", WINDOW)
    reached = {}
    for member in fitted.members:
        right = fitted.predict_log_proba(tiles, member).argmax(axis=1) == tiles.labels
        reached[member.kind] = np.mean([right[tiles.labels == c].mean() for c in range(3)])
    macro = max(reached.values())
    assert e.baseline is not None
    assert reached[e.baseline.kind] == macro
    assert e.baseline.macro_accuracy == pytest.approx(macro)
    assert e.baseline.macro_accuracy > 0.45
    assert len(e.baselines) == 2
    assert e.advantage is not None
    assert e.advantage[0] == pytest.approx(e.macro_accuracy - macro)
    values = json.loads(e.to_json())
    assert set(values["baseline"]) == {"kind", "k", "accuracy", "macro_accuracy"}
    assert "(the baseline)" in e.to_text()


def test_the_baseline_is_the_better_one_here_whatever_validation_says(
    store: SequenceStore, model: SpeciesClassifier
) -> None:
    fitted = fit_baselines(store, WINDOW)
    for preferred in fitted.members:
        e = evaluate(model, store, baselines=replace(fitted, best=preferred), samples=10)
        assert e.baseline is not None
        assert e.baseline.macro_accuracy == max(b.macro_accuracy for b in e.baselines)


def test_what_runs_of_n_alone_tell_stands_in_every_form(
    tmp_path: Path, model: SpeciesClassifier
) -> None:
    rng = np.random.default_rng(1)
    rows = ["label\tpath\tsplit"]
    for label, every in zip(LABELS, (5, 10, 20), strict=True):
        for split in ("train", "test"):
            ids = rng.integers(0, 4, 3000).astype("u1")
            ids[::every] = 4
            (tmp_path / f"{label}.{split}.fa").write_text(f">{label}\n{decode(ids)}\n")
            rows.append(f"{label}\t{label}.{split}.fa\t{split}")
    (tmp_path / "sheet.tsv").write_text("\n".join(rows) + "\n")
    sheet = load_samples(tmp_path / "sheet.tsv")
    cut, kept = (
        build_store(sheet, tmp_path / "cache", n_policy=policy, validation=0, log=lambda _: None)
        for policy in ("cut", "keep")
    )
    e = evaluate(model, cut, with_n=kept, samples=10)
    assert e.n_only == 1
    assert "runs of N alone, before the cut" in e.to_text()
    assert json.loads(e.to_json())["n_only"] == 1
    assert Evaluation.from_dict(json.loads(e.to_json())).n_only == 1
    assert evaluate(model, cut, fit_baselines=False, samples=10).n_only is None
    keeping = SpeciesClassifier(replace(model.config, n_policy="keep")).eval()
    assert evaluate(keeping, kept, samples=10).n_only == 1


def test_given_baselines_serve_and_others_are_refused(
    store: SequenceStore, model: SpeciesClassifier, evaluation: Evaluation
) -> None:
    fitted = fit_baselines(store, WINDOW)
    e = evaluate(model, store, baselines=fitted, samples=200)
    assert e.to_json() == evaluation.to_json()
    with pytest.raises(ValueError, match="windows of 100 bases"):
        evaluate(model, store, baselines=fitted, window=64, samples=10)
    none = evaluate(model, store, fit_baselines=False, samples=10)
    assert none.baseline is None
    assert "No k-mer baseline" in none.to_text()


def test_a_sheet_without_training_rows_says_why_there_is_no_baseline(
    tmp_path: Path, model: SpeciesClassifier
) -> None:
    e = evaluate(model, build(tmp_path, {"test": 3}), samples=10)
    assert e.baseline is None
    assert e.no_baseline is not None
    assert "no train records" in e.no_baseline


def test_batch_size_and_strands(store: SequenceStore, model: SpeciesClassifier) -> None:
    tiles = tile_windows(store, "test", WINDOW)
    one = window_log_probabilities(Scorer(model), tiles, batch_size=1)
    seen: list[tuple[int, int]] = []
    many = window_log_probabilities(
        Scorer(model), tiles, batch_size=17, progress=lambda *at: seen.append(at)
    )
    np.testing.assert_allclose(one, many, atol=1e-5)
    assert seen[-1] == (len(tiles), len(tiles))
    e = evaluate(model, store, fit_baselines=False, both_strands=True, samples=10)
    assert e.both_strands
    assert "both strands" in e.to_text()


def test_near_duplicates_are_left_out_beside(
    store: SequenceStore, model: SpeciesClassifier, evaluation: Evaluation
) -> None:
    records = [r.index for r in store.select("test") if r.length >= 64]
    e = evaluate(model, store, near_duplicates=records[:4], samples=50)
    subset = e.excluding_near_duplicates
    assert subset is not None
    assert subset.records == evaluation.records - 4
    assert subset.windows < e.windows
    assert e.accuracy == evaluation.accuracy
    assert "Without 4 records" in e.to_text()
    nothing = evaluate(model, store, near_duplicates=[], fit_baselines=False, samples=10)
    assert nothing.excluding_near_duplicates is None
    assert evaluation.excluding_near_duplicates is None  # random sequences share nothing


def _store_with_copies(folder: Path) -> SequenceStore:
    """Two training records, and as test: one at 0.5 % divergence, one at 5 %, one half new."""
    rng = np.random.default_rng(0)
    train = rng.integers(0, 4, (2, 6000)).astype("u1")
    close, far = train[0].copy(), train[0].copy()
    close[100::700] = (close[100::700] + 1) % 4
    far[::20] = (far[::20] + 1) % 4
    half = np.concatenate([train[1][:3000], rng.integers(0, 4, 3000).astype("u1")])
    turned = np.roll(reverse_complement(close), 1234)
    rows = ["label\tpath\tsplit"]
    for name, split, ids in (
        ("ape", "train", train[0]), ("bat", "train", train[1]), ("close", "test", close),
        ("turned", "test", turned), ("far", "test", far), ("half", "test", half),
    ):  # fmt: skip
        (folder / f"{name}.fa").write_text(f">{name}\n{decode(ids)}\n")
        rows.append(f"{'bat' if name in ('bat', 'half') else 'ape'}\t{name}.fa\t{split}")
    (folder / "sheet.tsv").write_text("\n".join(rows) + "\n")
    sheet = load_samples(folder / "sheet.tsv")
    return build_store(sheet, folder / "cache", validation=0, log=lambda _: None)


@pytest.mark.parametrize("sampled", [False, True])
def test_near_duplicates_are_found_on_either_strand(
    tmp_path: Path, monkeypatch, sampled: bool
) -> None:
    store = _store_with_copies(tmp_path)
    if sampled:
        monkeypatch.setattr("mambabio.near_duplicates._EXACT_BASES", 6000)
    found = near_duplicates(store)
    assert [store.records[i].name for i in found] == ["close", "turned"]
    assert near_duplicates(store, share=0.99) == []
    said: list[str] = []
    assert known_near_duplicates(store, log=said.append) == found
    assert known_near_duplicates(store, log=said.append) == found
    assert len(said) == 1  # remembered


def test_what_does_not_fit_the_model_is_refused(
    store: SequenceStore, model: SpeciesClassifier
) -> None:
    other = replace(model.config, n_policy="keep")
    with pytest.raises(ValueError, match="n_policy 'cut'"):
        evaluate(SpeciesClassifier(other), store)
    fewer = replace(model.config, labels=("ape", "bat"))
    with pytest.raises(ValueError, match="label 'cow'"):
        evaluate(SpeciesClassifier(fewer), store)
    with pytest.raises(ValueError, match="batch_size is 0"):
        evaluate(model, store, batch_size=0)


def test_classes_in_another_order_are_the_same_classes(
    store: SequenceStore, model: SpeciesClassifier, evaluation: Evaluation
) -> None:
    turned = SpeciesClassifier(replace(model.config, labels=("cow", "ape", "bat", "dog"))).eval()
    weights = dict(model.state_dict())
    order = [2, 0, 1]
    low = torch.full((1,), -1e3)
    weights["head.weight"] = torch.cat([weights["head.weight"][order], torch.zeros(1, 16)])
    weights["head.bias"] = torch.cat([weights["head.bias"][order], low])
    turned.load_state_dict(weights)
    e = evaluate(turned, store, samples=200)
    assert e.accuracy == evaluation.accuracy
    assert e.macro_accuracy == pytest.approx(evaluation.macro_accuracy)
    assert e.chance == 0.25
    assert {c.label: c.support for c in e.per_class}["dog"] == 0


def test_calibration_is_fitted_on_validation_and_kept(
    store: SequenceStore, model: SpeciesClassifier, tmp_path: Path
) -> None:
    tiles = tile_windows(store, "val", WINDOW)
    sharp = SpeciesClassifier(model.config)
    sharp.load_state_dict(model.state_dict())
    sharp.head.weight.data.mul_(30)
    before = window_log_probabilities(Scorer(sharp), tiles)
    temperature = calibrate(sharp, store)
    assert temperature > 1.5
    assert sharp.config.temperature == temperature
    after = window_log_probabilities(Scorer(sharp), tiles)
    assert np.array_equal(before.argmax(1), after.argmax(1))
    assert negative_log_likelihood(after, tiles.labels) < negative_log_likelihood(
        before, tiles.labels
    )
    assert calibrate(sharp, store) == pytest.approx(temperature, rel=1e-3)  # from 1, not from T
    again = SpeciesClassifier.from_pretrained(sharp.save_pretrained(tmp_path / "m"))
    assert again.config.temperature == sharp.config.temperature
