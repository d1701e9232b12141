"""Simulated genomes: what the parameters promise, and what tells the species apart."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabio.alphabet import C, G
from mambabio.baselines import macro_accuracy
from mambabio.baselines_bayes import KmerCounts, NaiveBayes
from mambabio.baselines_linear import LinearKmers, window_frequencies
from mambabio.kmers import kmer_codes
from mambabio.records import read_records
from mambabio.sheet import load_samples
from mambabio.simulate import SPECIES, Simulation, simulate
from mambabio.simulate_ancestor import markov_sequence
from mambabio.simulate_evolution import (
    Branch,
    Chromosome,
    Rates,
    Sites,
    divergence,
    evolve,
    substitute,
)
from mambabio.simulate_repeats import shuffle_keeping_kmers
from mambabio.store import SequenceStore, build_store
from mambabio.windows import tile_windows
from mambacore.errors import UsageError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    return simulate(tmp_path_factory.mktemp("apes"), seed=3)


@pytest.fixture(scope="module")
def store(made: Simulation) -> SequenceStore:
    return build_store(load_samples(made.samples), made.folder / "cache", log=lambda line: None)


def test_divergences_are_those_of_the_apes(made: Simulation) -> None:
    assert made.divergence["chimpanzee-human"] == pytest.approx(0.012, abs=0.0008)
    assert made.divergence["bonobo-chimpanzee"] == pytest.approx(0.0044, abs=0.0005)
    assert made.divergence["gorilla-human"] == pytest.approx(0.0162, abs=0.001)
    assert made.divergence["human-orangutan"] == pytest.approx(0.0312, abs=0.0015)
    truth = json.loads((made.folder / "truth.json").read_text())
    assert truth["divergence"] == made.divergence
    assert truth["tree"]["bonobo"]["parent"] == "pan"


def test_the_sheet_holds_out_the_same_chromosomes_everywhere(made, store: SequenceStore) -> None:
    assert store.labels == SPECIES
    for species in range(5):
        names = {
            split: [r.name for r in store.select(split) if r.label_id == species]
            for split in ("train", "val", "test")
        }
        assert names == {
            "train": ["chr1", "chr2", "chr3", "chr4"],
            "val": ["chr5"],
            "test": ["chr6"],
        }
    assert not store.dropped
    # Copies of one family aside, nothing of the test chromosome stands in a training one.
    sizes = [sum(r.length for r in store.records if r.label_id == i) for i in range(5)]
    assert max(sizes) / min(sizes) < 1.06
    assert sizes == [made.sizes[species] for species in SPECIES]


def test_four_mers_do_not_tell_the_species_but_longer_words_do(store: SequenceStore) -> None:
    train, test = (tile_windows(store, split, 1024) for split in ("train", "test"))
    reached = {}
    for k in (4, 6):
        features, held = window_frequencies(train, k), window_frequencies(test, k)
        model = LinearKmers.fit(features, train.labels, 5, k=k, canonical=False, strength=0.01)
        reached[k] = macro_accuracy(model.scores_of(held).argmax(axis=1), test.labels)
    bayes = NaiveBayes(KmerCounts.of(store, 12), 1.0)
    scores = np.concatenate(
        [bayes.scores(test.batch(slice(i, i + 100))) for i in range(0, len(test), 100)]
    )
    assert reached[4] < 0.6
    assert reached[6] > 0.75
    assert macro_accuracy(scores.argmax(axis=1), test.labels) > 0.75


def test_without_young_repeats_the_apes_are_hard(tmp_path: Path) -> None:
    made = simulate(tmp_path, bases=300_000, chromosomes=3, repeats=0)
    store = build_store(load_samples(made.samples), tmp_path / "cache", log=lambda line: None)
    bayes = NaiveBayes(KmerCounts.of(store, 10), 1.0)
    test = tile_windows(store, "test", 1024)
    called = bayes.scores(test.batch(slice(None))).argmax(axis=1)
    assert macro_accuracy(called, test.labels) < 0.4


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        folder = tmp_path / name
        simulate(folder, seed=seed, bases=30_000, chromosomes=3)
        files = sorted(p for p in folder.iterdir() if p.suffix != ".md")
        digests.append([hashlib.sha256(p.read_bytes()).hexdigest() for p in files])
    assert digests[0] == digests[1]
    assert not set(digests[0][:5]) & set(digests[2][:5])
    names = [p.name for p in files]
    assert names == [*(f"{s}.fa.gz" for s in SPECIES), "samples.tsv", "truth.json", "unknown.fa.gz"]
    unknown = list(read_records(tmp_path / "a" / "unknown.fa.gz"))
    assert sorted({r.description.split("truth=")[1] for r in unknown}) == list(SPECIES)
    assert not any(species in r.name for r in unknown for species in SPECIES)


def test_wrong_sizes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for options in ({"chromosomes": 2}, {"bases": 100}, {"repeats": -1}, {"repeats": 100}):
        with pytest.raises(UsageError):
            simulate(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@settings(max_examples=30)
@given(st.integers(4, 400), st.integers(0, 10**6))
def test_shuffles_keep_every_4mer(n, seed) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 4, n).astype(np.uint8)
    other = shuffle_keeping_kmers(ids, rng)
    for k in (1, 2, 3, 4):
        assert sorted(kmer_codes(ids, k)) == sorted(kmer_codes(other, k))


def test_shuffles_differ_in_longer_words() -> None:
    rng = np.random.default_rng(0)
    template = markov_sequence(240, 0.5, rng)
    words = [set(kmer_codes(shuffle_keeping_kmers(template, rng), 8).tolist()) for _ in range(6)]
    shared = [len(a & b) / len(a) for i, a in enumerate(words) for b in words[:i]]
    assert np.mean(shared) < 0.3


def test_substitutions_have_their_rate_transitions_and_cpg_decay() -> None:
    rng = np.random.default_rng(0)
    before = markov_sequence(1_000_000, 0.45, rng)
    rates = Rates()
    after = substitute(before, Branch(0.01), rates, rng)
    changed = before != after
    assert changed.mean() == pytest.approx(0.01, rel=0.05)
    pair = np.flatnonzero((before[:-1] == C) & (before[1:] == G))
    in_cpg = np.zeros(len(before), bool)
    in_cpg[pair] = in_cpg[pair + 1] = True
    assert changed[in_cpg].mean() / changed[~in_cpg].mean() == pytest.approx(10, rel=0.2)
    transition = (before ^ after) == 2
    ratio = transition[changed & ~in_cpg].sum() / (~transition)[changed & ~in_cpg].sum()
    assert ratio == pytest.approx(rates.transitions, rel=0.1)
    gain = [
        ((b == 1) | (b == 2)).mean()
        for b in (substitute(before, Branch(0.05, bias), rates, rng) for bias in (0.5, 2.0))
    ]
    assert gain[0] < gain[1]


def test_orthologous_bases_keep_their_site_through_indels_and_insertions() -> None:
    rng = np.random.default_rng(0)
    sites = Sites()
    root = Chromosome(markov_sequence(50_000, 0.42, rng), sites.new(50_000))
    family = markov_sequence(200, 0.5, rng)
    rates = Rates(indels=2.0)
    still = evolve(root, Branch(0.0, repeats=2.0), family, rates, sites, rng)
    assert divergence(root, still) == 0
    assert 70 * 150 < len(still.bases) - 50_000 < 130 * 250
    moved = evolve(root, Branch(0.02), family, rates, sites, rng)
    assert len(np.unique(moved.site)) == len(moved.site)
    kept = np.isin(root.site, moved.site).mean()
    assert 0.85 < kept < 0.97  # 0.02 a base, half of them deletions of about 4 bases
    assert (np.diff(moved.site[moved.site < 50_000]) > 0).all()
    assert divergence(root, moved) == pytest.approx(0.02, rel=0.15)
