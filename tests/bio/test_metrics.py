"""Scores against scikit-learn and by hand, the bootstrap's coverage, the reliability curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from mambabio.metrics import bootstrap_interval, reliability, score


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(1, 80), st.integers(0, 2**32 - 1))
def test_scores_agree_with_scikit_learn(classes: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    true, predicted = rng.integers(0, classes, (2, n))
    s = score(true, predicted, [f"c{i}" for i in range(classes)])
    present = np.unique(true)
    assert s.accuracy == pytest.approx(sk.accuracy_score(true, predicted))
    recalls = sk.recall_score(true, predicted, labels=present, average=None, zero_division=0)
    assert s.macro_accuracy == pytest.approx(np.mean(recalls))
    macro_f1 = sk.f1_score(true, predicted, labels=present, average="macro", zero_division=0)
    assert s.f1 == pytest.approx(macro_f1)
    if len({*true, *predicted}) > 1:
        assert s.mcc == pytest.approx(sk.matthews_corrcoef(true, predicted))
    assert s.confusion.sum() == n
    assert [c.support for c in s.per_class] == np.bincount(true, minlength=classes).tolist()
    for i, c in enumerate(s.per_class):
        assert np.isnan(c.recall) == (i not in present)


def test_scores_by_hand() -> None:
    s = score([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 2], ["a", "b", "c", "d"])
    assert s.confusion.tolist() == [[3, 1, 0, 0], [0, 1, 1, 0], [0] * 4, [0] * 4]
    assert s.accuracy == pytest.approx(4 / 6)
    assert s.macro_accuracy == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert s.per_class[0].precision == 1.0
    assert s.per_class[1].precision == pytest.approx(0.5)
    assert s.per_class[2].precision == 0.0
    assert s.f1 == pytest.approx((2 * 0.75 / 1.75 + 0.5) / 2)


@pytest.mark.parametrize(
    ("true", "predicted"), [([], []), ([0, 1], [0]), ([0, 3], [0, 0]), ([0.5], [0])]
)
def test_wrong_arguments_are_refused(true: list, predicted: list) -> None:
    with pytest.raises(ValueError, match=r"window|class"):
        score(true, predicted, ["a", "b"])


def _sample(rng: np.random.Generator, groups: int, windows: int) -> tuple[np.ndarray, ...]:
    """Windows of one group share their group's chance of being right."""
    true = np.repeat([0, 1, 2], groups * windows)
    group = np.repeat(np.arange(3 * groups), windows)
    ability = rng.beta(3, 2, 3 * groups)
    return rng.random(len(true)) < ability[group], true, group


def test_interval_covers_the_truth_because_groups_are_drawn_whole() -> None:
    rng = np.random.default_rng(3)
    whole = windowwise = 0
    for trial in range(80):
        right, true, group = _sample(rng, 20, 12)
        i = bootstrap_interval(right, true, group, samples=200, seed=trial)
        whole += i.low <= 0.6 <= i.high
        j = bootstrap_interval(right, true, np.arange(len(true)), samples=200, seed=trial)
        windowwise += j.low <= 0.6 <= j.high
    assert whole >= 0.88 * 80
    assert windowwise < 0.75 * 80  # drawing windows would claim far too much


def test_interval_is_stratified_seeded_and_macro() -> None:
    right, true, group = _sample(np.random.default_rng(0), 8, 31)
    a = bootstrap_interval(right, true, group, seed=1)
    assert a == bootstrap_interval(right, true, group, seed=1)
    other = bootstrap_interval(right, true, group, seed=2, confidence=0.8)
    assert other != bootstrap_interval(right, true, group, seed=1, confidence=0.8)
    assert (a.groups, a.smallest) == (24, 8)
    # Two classes without variation inside: resampling within a class cannot change anything.
    fixed = bootstrap_interval([1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 1, 2, 3, 4])
    assert fixed.low == fixed.high == 0.5
    plain = bootstrap_interval([1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 1, 2, 3, 4], macro=False)
    assert plain.low == plain.high == pytest.approx(0.4)
    # One name in two classes is two groups.
    assert bootstrap_interval([1, 0], [0, 1], ["x", "x"]).groups == 2


def test_interval_does_not_depend_on_the_order_of_windows() -> None:
    right, true, group = _sample(np.random.default_rng(5), 6, 7)
    order = np.random.default_rng(1).permutation(len(true))
    a = bootstrap_interval(right, true, group)
    b = bootstrap_interval(right[order], true[order], group[order])
    assert (a.low, a.high) == pytest.approx((b.low, b.high))


def test_paired_difference_is_narrower_than_either_interval() -> None:
    rng = np.random.default_rng(2)
    right, true, group = _sample(rng, 12, 20)
    other = right & (rng.random(len(right)) < 0.95)
    one = bootstrap_interval(right, true, group)
    gap = bootstrap_interval(right.astype(float) - other, true, group)
    assert gap.low > 0
    assert gap.high - gap.low < one.high - one.low


def test_interval_refuses_what_cannot_be() -> None:
    for bad in (([], [], []), ([1, 0], [0], [0])):
        with pytest.raises(ValueError, match="one length"):
            bootstrap_interval(*bad)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([1], [0], [0], confidence=95)


def test_reliability_by_hand_and_of_a_calibrated_classifier() -> None:
    r = reliability([0.1, 0.9, 0.95, 1.0], [0, 1, 1, 0], bins=10)
    assert r.count.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    assert r.ece == pytest.approx((1 * 0.1 + 3 * abs(2 / 3 - 2.85 / 3)) / 4)
    rng = np.random.default_rng(0)
    p = rng.uniform(0.2, 1, 40_000)
    assert reliability(p, rng.random(p.size) < p).ece < 0.02
    assert reliability(p, rng.random(p.size) < p / 2).ece > 0.2
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        reliability([1.5], [1])
