"""k-mer codes and the baselines: against plain Python, by property, and on real genomes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabio.alphabet import decode, reverse_complement
from mambabio.baselines import Baseline, KmerBaselines, _choose, macro_accuracy
from mambabio.baselines_bayes import KmerCounts, NaiveBayes
from mambabio.baselines_linear import LinearKmers, fold_strands, kmer_frequencies
from mambabio.baselines_n import n_only_accuracy
from mambabio.kmers import kmer_codes
from mambabio.sheet import load_samples
from mambabio.store import SequenceStore, build_store
from mambabio.windows import WindowBatch, tile_windows
from mambacore.errors import DataError, UsageError


def quiet(message: str) -> None:
    """No log."""


def naive_codes(ids: np.ndarray, k: int, canonical: bool) -> list[int]:
    codes = []
    for i in range(len(ids) - k + 1):
        word = ids[i : i + k].tolist()
        if max(word) > 3:
            codes.append(-1)
            continue
        forward = sum(base * 4 ** (k - 1 - j) for j, base in enumerate(word))
        backward = sum((3 - base) * 4**j for j, base in enumerate(word))
        codes.append(min(forward, backward) if canonical else forward)
    return codes


@settings(max_examples=60)
@given(st.integers(1, 31), st.integers(0, 80), st.booleans(), st.integers(0, 10**6))
def test_kmer_codes_equal_the_definition(k, n, canonical, seed) -> None:
    rng = np.random.default_rng(seed)
    ids = np.where(rng.random(n) < 0.03, 4, rng.integers(0, 4, n)).astype(np.uint8)
    codes = kmer_codes(ids, k, canonical=canonical)
    assert codes.tolist() == naive_codes(ids, k, canonical)
    rows = kmer_codes(np.stack([ids, ids[::-1]]), k, canonical=canonical)
    assert rows[1].tolist() == naive_codes(ids[::-1], k, canonical)
    if canonical:
        assert (
            kmer_codes(reverse_complement(ids), k, canonical=True).tolist() == codes.tolist()[::-1]
        )


def test_k_out_of_range_is_refused() -> None:
    for k in (0, 32):
        with pytest.raises(UsageError, match="1 to 31"):
            kmer_codes(np.zeros(40, np.uint8), k)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SequenceStore:
    """Three classes that share composition and differ in words of 12 bases, of unequal size."""
    folder = tmp_path_factory.mktemp("kmers")
    rng = np.random.default_rng(0)
    words = {label: rng.integers(0, 4, (40, 12)) for label in ("ape", "bat", "cow")}
    for label, records in (("ape", 30), ("bat", 30), ("cow", 90)):
        text = []
        for number in range(records):
            ids = rng.integers(0, 4, 1200).astype(np.uint8)
            for word in words[label][rng.integers(0, 40, 30)]:
                place = rng.integers(0, 1188)
                ids[place : place + 12] = word
            ids[rng.integers(0, 1200, 3)] = 4
            text.append(f">{label}{number}\n{decode(ids)}\n")
        (folder / f"{label}.fa").write_text("".join(text))
    return build_store(
        load_samples(folder), folder / "cache", n_policy="keep", validation=0.2, log=quiet
    )


@pytest.mark.parametrize("k", [3, 8])
def test_counts_are_those_of_whole_training_records(store: SequenceStore, k: int) -> None:
    counts = KmerCounts.of(store, k)
    expected: dict[tuple[int, int], int] = {}
    for record in store.select("train"):
        for code in naive_codes(store.ids(record), k, True):
            if code >= 0:
                key = (code, record.label_id)
                expected[key] = expected.get(key, 0) + 1
    rows, columns = np.nonzero(counts.counts)
    found = {
        (int(counts.codes[row]), int(column)): int(counts.counts[row, column])
        for row, column in zip(rows, columns, strict=True)
    }
    assert found == expected


def test_counting_in_many_buffers_changes_nothing(store: SequenceStore, monkeypatch) -> None:
    import mambabio.baselines_bayes as module

    whole = KmerCounts.of(store, 7)
    monkeypatch.setattr(module, "_BUFFER", 20_000)
    monkeypatch.setattr(module, "_BLOCK", 500)
    parts = KmerCounts.of(store, 7)
    np.testing.assert_array_equal(whole.codes, parts.codes)
    np.testing.assert_array_equal(whole.counts, parts.counts)


def test_naive_bayes_equals_its_formula(store: SequenceStore) -> None:
    k, alpha = 5, 0.5
    counts = KmerCounts.of(store, k)
    dense = np.zeros((4**k, 3))
    dense[counts.codes] = counts.counts
    dense *= dense.sum(axis=0).min() / dense.sum(axis=0)
    batch = tile_windows(store, "val", 300).batch([0, 1, 2])
    model = NaiveBayes(counts, alpha)
    expected = [
        np.log(dense[[c for c in naive_codes(row, k, True) if c >= 0]] + alpha).sum(axis=0)
        for row in batch.tokens
    ]
    got = model.scores(batch)
    difference = got - np.array(expected)
    np.testing.assert_allclose(difference - difference[:, :1], 0, atol=1e-3)


def test_frequencies_are_shares_and_fold_over_the_strands() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, (5, 200)).astype(np.uint8)
    tokens[4] = 4
    tokens[3, 100:] = 15
    batch = WindowBatch(tokens, np.array([200] * 5), np.zeros(5, np.int64))
    plain = kmer_frequencies(batch, 4)
    np.testing.assert_allclose(plain.sum(axis=1), [1, 1, 1, 1, 0], rtol=1e-5)
    assert plain[0, naive_codes(tokens[0], 4, False)[0]] >= 1 / 197 - 1e-6
    folded = fold_strands(plain, 4)
    assert folded.shape == (5, (4**4 + 4**2) // 2)
    np.testing.assert_allclose(folded.sum(axis=1), [1, 1, 1, 1, 0], rtol=1e-5)
    turned = WindowBatch(reverse_complement(tokens[:3]), batch.lengths[:3], batch.labels[:3])
    np.testing.assert_allclose(fold_strands(kmer_frequencies(turned, 4), 4), folded[:3], atol=1e-6)


@pytest.mark.parametrize("classes", [[0, 1], [0, 2], [0, 1, 2]])
def test_the_linear_classifier_separates_and_leaves_out_absent_classes(classes) -> None:
    rng = np.random.default_rng(0)
    labels = np.array(classes * 40)
    features = (rng.normal(size=(len(labels), 16)) + labels[:, None]).astype(np.float32)
    model = LinearKmers.fit(features, labels, 3, k=2, canonical=False, strength=1.0)
    called = model.scores_of(features).argmax(axis=1)
    assert macro_accuracy(called, labels) > 0.9
    assert set(called) <= set(classes)


@pytest.fixture(scope="module")
def fitted(store: SequenceStore) -> KmerBaselines:
    train, val = (tile_windows(store, split, 400) for split in ("train", "val"))
    return KmerBaselines.fit(train, val, ks=(4, 8), linear_k=5)


def test_naive_bayes_finds_the_words_and_is_the_best(store, fitted: KmerBaselines) -> None:
    assert [(member.kind, member.k) for member in fitted.members] == [
        ("linear", 5),
        ("naive Bayes", 8),
    ]
    assert fitted.best.name == "nb8"
    tiles = tile_windows(store, "val", 400)
    log_p = fitted.predict_log_proba(tiles)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1)
    accuracy = macro_accuracy(log_p.argmax(axis=1), tiles.labels)
    assert accuracy == pytest.approx(fitted.best.validation)
    assert accuracy > 0.8
    np.testing.assert_allclose(fitted.predict_log_proba(tiles.batch([5, 2])), log_p[[5, 2]])


def test_baselines_are_kept_in_a_file(store, fitted: KmerBaselines, tmp_path: Path) -> None:
    path = tmp_path / "baselines.npz"
    fitted.save(path)
    again = KmerBaselines.load(path)
    assert again.members == fitted.members
    assert again.best == fitted.best
    assert (again.labels, again.window) == (("ape", "bat", "cow"), 400)
    tiles = tile_windows(store, "val", 400)
    for member in fitted.members:
        np.testing.assert_array_equal(
            again.predict_log_proba(tiles, member), fitted.predict_log_proba(tiles, member)
        )
    path.write_bytes(path.read_bytes()[:100])
    for bad in (path, tmp_path / "none.npz"):
        with pytest.raises(DataError, match="cannot be read as k-mer baselines"):
            KmerBaselines.load(bad)


def test_without_validation_the_choice_is_fixed(store: SequenceStore) -> None:
    fitted = KmerBaselines.fit(tile_windows(store, "train", 400), None, ks=(4, 6), linear_k=3)
    assert fitted.best == Baseline("naive Bayes", 6, None)


def test_what_cannot_be_fitted_is_refused(store: SequenceStore) -> None:
    train = tile_windows(store, "train", 400)
    with pytest.raises(UsageError, match="same length"):
        KmerBaselines.fit(train, tile_windows(store, "val", 300))
    with pytest.raises(UsageError, match="1 to 15"):
        KmerBaselines.fit(train, None, ks=(16,))
    with pytest.raises(DataError, match="two classes"):
        KmerBaselines.fit(train.take(np.flatnonzero(train.labels == 0)), None)


def test_the_choice_prefers_long_kmers_where_validation_cannot_tell() -> None:
    def entries(*scores: float) -> list[Baseline]:
        return [Baseline("naive Bayes", k, s) for k, s in zip((12, 10, 8), scores, strict=True)]

    assert _choose(entries(0.55, 0.55, 0.57), 1000).k == 12
    assert _choose(entries(0.45, 0.56, 0.57), 1000).k == 10
    assert _choose(entries(0.95, 1.0, 1.0), 20).k == 12
    assert _choose(entries(0.90, 1.0, 1.0), 2000).k == 10


def test_runs_of_n_alone_tell_what_they_tell(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = ["label\tpath\tsplit"]
    for label, runs in (("ape", 2), ("bat", 6)):
        for split in ("train", "test"):
            ids = rng.integers(0, 4, 40_000).astype(np.uint8)
            for start in range(0, 40_000, 200):
                ids[start + 20 : start + 20 + 10 * runs : 10] = 4
            (tmp_path / f"{label}.{split}.fa").write_text(f">{label}\n{decode(ids)}\n")
            rows.append(f"{label}\t{label}.{split}.fa\t{split}")
    (tmp_path / "s.tsv").write_text("\n".join(rows) + "\n")
    sheet = load_samples(tmp_path / "s.tsv")
    kept = build_store(sheet, tmp_path / "cache", n_policy="keep", log=quiet)
    assert n_only_accuracy(kept, 400) == 1
    cut = build_store(sheet, tmp_path / "cache", n_policy="cut", log=quiet)
    with pytest.raises(UsageError, match="'keep'"):
        n_only_accuracy(cut, 400)


FIVE = ("human", "galago", "mouse", "cow", "dog")


def encode_sheet(shared_data: Path, folder: Path) -> Path:
    lines = ["label\tpath\tsplit"]
    for region, split in (("ENm001", "train"), ("ENm002", "test")):
        for name in FIVE:
            file = shared_data / f"dna/encode_may2005/{region}/{name}.{region}.fa.gz"
            lines.append(f"{name}\t{file}\t{split}")
    (folder / "encode.tsv").write_text("\n".join(lines) + "\n")
    return folder / "encode.tsv"


@pytest.mark.slow
def test_baselines_reach_the_known_figures_on_five_mammals(shared_data, tmp_path: Path) -> None:
    """ENm001 to ENm002 at 8 kb: linear .84, naive Bayes .951 (measured elsewhere); N alone less."""
    sheet = load_samples(encode_sheet(shared_data, tmp_path))
    options = {"validation": 0.15, "log": quiet}
    store = build_store(sheet, tmp_path, **options)
    train, val, test = (tile_windows(store, split, 8000) for split in ("train", "val", "test"))
    fitted = KmerBaselines.fit(train, val)
    reached = {
        member.kind: macro_accuracy(fitted.predict_log_proba(test, member).argmax(1), test.labels)
        for member in fitted.members
    }
    assert fitted.best.kind == "naive Bayes"
    assert reached["naive Bayes"] == pytest.approx(0.951, abs=0.02)
    assert reached["linear"] == pytest.approx(0.84, abs=0.02)
    kept = build_store(sheet, tmp_path, n_policy="keep", **options)
    assert 0.2 < n_only_accuracy(kept, 32_000) < 0.5
