"""Packed rows: full, deterministic, from single records, and scored as if each stood alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import assert_close
from mambabio.alphabet import PAD, decode, reverse_complement
from mambabio.classifier import SpeciesClassifier
from mambabio.classifier_config import ClassifierConfig
from mambabio.packing import PackedBatch, PackedWindows, pack
from mambabio.sheet import load_samples
from mambabio.store import build_store
from mambacore import LanguageModel, ModelConfig, UsageError, chunked_cross_entropy
from mambacore.errors import DataError

LENGTHS = {"short": [70, 80, 90, 130, 200], "long": [5000, 64, 63]}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packing")
    random = np.random.default_rng(0)
    for label, lengths in LENGTHS.items():
        records = [decode(random.integers(0, 4, n).astype(np.uint8)) for n in lengths]
        text = "".join(f">{label}{i}\n{letters}\n" for i, letters in enumerate(records))
        (folder / f"{label}.fa").write_text(text)
    return build_store(load_samples(folder), folder / "cache", validation=0, log=lambda line: None)


@given(lengths=st.lists(st.integers(1, 50), max_size=60))
@settings(max_examples=50, deadline=None)
def test_pack_deals_every_item_to_one_row_that_it_fits(lengths):
    rows = pack(lengths, 50)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    filled = sorted(sum(lengths[i] for i in row) for row in rows)
    assert all(total <= 50 for total in filled)
    assert sum(total <= 25 for total in filled) <= 1


def pieces(batch: PackedBatch):
    """(row, number, ids, label) of every segment."""
    for row in range(len(batch.tokens)):
        count = int((batch.labels[row] >= 0).sum())
        for number in range(count):
            at = batch.segments[row] == number
            yield row, number, batch.tokens[row][at], int(batch.labels[row, number])


def test_rows_are_full_and_their_segments_single_records(store):
    windows = PackedWindows(store, seed=5)
    batch = windows.batch(3, 0, 1, 100, 300)
    whole = 0
    strands = set()
    for _, _, ids, label in pieces(batch):
        found = [
            (strand, len(ids) == r.length)
            for r in store.records
            for strand, seq in enumerate((ids, reverse_complement(ids)))
            if r.label_id == label and seq.tobytes() in store.ids(r).tobytes()
        ]
        assert found, "a segment is not a stretch of one record of its label"
        whole += found[0][1]
        strands.add(found[0][0])
        assert len(ids) >= 64
    assert whole > 50
    assert strands == {0, 1}
    padded = (batch.tokens == PAD).sum(axis=1)
    assert padded.max() < 64
    assert batch.padding < 0.1 < windows.unpacked_padding(300)
    assert 0.3 < (batch.labels[batch.labels >= 0] == 0).mean() < 0.7, "classes alike"


def test_every_base_is_read_equally_often_without_classes(store):
    """5,000 of 5,634 bases stand in the long record, and about that share of the draws."""
    windows = PackedWindows(store, seed=1, balanced=False, reverse_complement=False)
    batch = windows.batch(0, 0, 1, 400, 500)
    long = store.labels.index("long")
    read = {0: 0, 1: 0}
    for _, _, ids, label in pieces(batch):
        read[label] += len(ids)
    share = read[long] / sum(read.values())
    assert share == pytest.approx(5064 / 5634, abs=0.06)


def test_rows_are_a_function_of_step_and_row(store):
    whole = PackedWindows(store, seed=2).batch(9, 0, 1, 6, 256)
    for rank in range(3):
        part = PackedWindows(store, seed=2).batch(9, rank, 3, 2, 256)
        mine = slice(2 * rank, 2 * rank + 2)
        assert np.array_equal(part.tokens, whole.tokens[mine])
        assert np.array_equal(part.segments, whole.segments[mine])
    other = PackedWindows(store, seed=2).batch(10, 0, 1, 6, 256)
    assert not np.array_equal(other.tokens, whole.tokens)


@pytest.mark.parametrize("mixer", ["mamba", "s4d", "attention"])
def test_a_language_model_scores_packed_as_separate(store, mixer):
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(vocab_size=16, d_model=8, n_layer=2, mixer=mixer))
    packed = PackedWindows(store, seed=4).batch(0, 0, 1, 2, 330)
    tokens, targets, segments = (torch.from_numpy(part) for part in packed.for_language())

    def loss(tokens, targets, segments=None):
        hidden, _ = model.hidden(tokens, segment_ids=segments)
        return chunked_cross_entropy(hidden, model.head_weight, targets, mask=targets < 4)

    def gradient(sums):
        model.zero_grad()
        total = torch.stack([s.total for s in sums]).sum()
        total.backward()
        return total.detach(), model.embedding.weight.grad.clone(), sum(s.counted for s in sums)

    alone = []
    for _, _, ids, _ in pieces(packed):
        sequence = torch.from_numpy(ids.copy())[None].long()
        alone.append(loss(sequence[:, :-1], sequence[:, 1:]))
    expected, got = gradient(alone), gradient([loss(tokens, targets, segments)])
    assert int(got[2]) == int(expected[2])
    assert_close(got[0], expected[0], 1e-5)
    assert_close(got[1], expected[1], 1e-4)


@pytest.mark.parametrize(("mixer", "pooling"), [("mamba", "mean"), ("bidirectional", "last")])
def test_a_classifier_scores_packed_as_separate(store, mixer, pooling):
    torch.manual_seed(0)
    config = ClassifierConfig(
        ModelConfig(d_model=8, n_layer=2, mixer=mixer), labels=store.labels, pooling=pooling
    )
    model = SpeciesClassifier(config).eval()
    packed = PackedWindows(store, seed=4).batch(1, 0, 1, 3, 330)
    count = packed.labels.shape[1]
    with torch.no_grad():
        logits = model.forward_packed(
            torch.from_numpy(packed.tokens), torch.from_numpy(packed.segments), count
        )
        for row, number, ids, _ in pieces(packed):
            assert_close(logits[row, number], model(torch.from_numpy(ids.copy())[None])[0], 1e-4)


def test_refusals(store):
    with pytest.raises(UsageError, match="do not fit rows of 4"):
        pack([5], 4)
    with pytest.raises(DataError, match=r"label 'short' has no training record of at least 300"):
        PackedWindows(store, seed=0, minimum=300)
    with pytest.raises(UsageError, match="at least 64"):
        PackedWindows(store, seed=0).batch(0, 0, 1, 1, 32)
    config = ClassifierConfig(ModelConfig(d_model=8), labels=store.labels, pooling="max")
    zeros = torch.zeros(1, 64, dtype=torch.long)
    with pytest.raises(UsageError, match="pooled by mean or last"):
        SpeciesClassifier(config).forward_packed(zeros, zeros, 1)
