"""The interpolated Markov model: a distribution, its counts by hand, what it can learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabio.alphabet import N, encode, reverse_complement
from mambabio.markov import MarkovModel
from mambacore.errors import DataError, UsageError


def chain(length: int, seed: int, order: int = 2, sharp: float = 0.15) -> tuple[np.ndarray, float]:
    """A random Markov chain and its entropy rate in bits."""
    random = np.random.default_rng(seed)
    table = random.dirichlet([sharp] * 4, size=4**order)
    ids = list(random.integers(0, 4, order))
    draws = random.random(length)
    context = 0
    for x in ids:
        context = (context * 4 + x) % 4**order
    total = 0.0
    for u in draws:
        a = min(int((table[context].cumsum() < u).sum()), 3)
        total -= np.log2(table[context, a])
        ids.append(a)
        context = (context * 4 + a) % 4**order
    return np.array(ids, np.uint8), total / length


@settings(max_examples=15, deadline=None)
@given(
    pieces=st.lists(st.text("ACGTN", min_size=1, max_size=30), min_size=1, max_size=4),
    order=st.integers(0, 3),
    both=st.booleans(),
)
def test_counts_are_those_of_a_walk(pieces, order, both):
    stretches = [encode(p) for p in pieces] + [encode("ACGT")]
    model = MarkovModel.fit(stretches, [encode("ACGTTGCA")], order=order, both_strands=both)
    expected = [np.zeros((4**k, 4), int) for k in range(order + 1)]
    strands = stretches + ([reverse_complement(s) for s in stretches] if both else [])
    for ids, k in itertools.product(strands, range(order + 1)):
        for i in range(k, len(ids)):
            if (ids[i - k : i + 1] < 4).all():
                context = sum(int(x) * 4**j for j, x in enumerate(ids[i - k : i][::-1]))
                expected[k][context, ids[i]] += 1
    for got, wanted in zip(model.counts, expected, strict=True):
        assert np.array_equal(got, wanted)


def test_it_is_a_distribution():
    """The four continuations of any history have probability 1 together."""
    ids, _ = chain(3000, 0)
    model = MarkovModel.fit([ids], [ids[:500]], order=6)
    for history in ("", "A", "ACGTACG", "NNACG", "TTTTTTTTTTTT"):
        ends = [np.concatenate([encode(history), [a]]).astype(np.uint8) for a in range(4)]
        assert sum(2.0 ** -model.bits(end)[-1] for end in ends) == pytest.approx(1.0)


def test_it_finds_the_entropy_of_a_chain_and_a_long_order_does_not_overfit():
    """Both directions of a chain are not one chain, so one strand is counted."""
    ids, entropy = chain(60_000, 1)
    train, val, test = ids[:40_000], ids[40_000:50_000], ids[50_000:]
    bits = {
        order: float(
            np.nanmean(MarkovModel.fit([train], [val], order=order, both_strands=False).bits(test))
        )
        for order in (0, 1, 2, 9)
    }
    assert bits[0] > bits[1] > bits[2] + 0.05
    assert bits[2] < entropy + 0.03
    assert bits[9] < bits[2] + 0.03


def test_other_letters_are_not_scored_and_end_a_context():
    ids, _ = chain(5000, 2)
    model = MarkovModel.fit([ids], [ids], order=4)
    cut = np.concatenate([ids[:50], [N], ids[50:100]]).astype(np.uint8)
    bits = model.bits(cut)
    assert np.isnan(bits[50])
    assert np.array_equal(bits[51:], model.bits(ids[50:100]))
    assert np.array_equal(bits[:50], model.bits(ids[:50]))


def test_refusals():
    with pytest.raises(UsageError, match="order is 15"):
        MarkovModel.fit([], [], order=15)
    with pytest.raises(DataError, match="needs A, C, G or T"):
        MarkovModel.fit([encode("NNN")], [encode("ACGT")], order=2)
