"""Distances of sets against closed forms; the classifier that they look through."""

from __future__ import annotations

import numpy as np
import pytest

from mambaaudio.digits import ClipClassifier, Heard, leave_one_out, normalise
from mambaaudio.distribution import (
    am_score,
    distances,
    frechet_distance,
    inception_score,
    modified_inception_score,
)
from mambaaudio.synth import pluck, tone
from mambacore.errors import DataError, UsageError

RATE = 8000


def _with_moments(mean: np.ndarray, root: np.ndarray, n: int = 600) -> np.ndarray:
    """Points whose sample mean and covariance are exactly `mean` and root root'."""
    raw = np.random.default_rng(0).normal(size=(n, len(mean)))
    raw -= raw.mean(axis=0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    return white @ root.T + mean


def test_frechet_distance_of_gaussians() -> None:
    a = _with_moments(np.zeros(3), np.eye(3))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + np.array([3, 4, 0])) == pytest.approx(25)
    # Diagonal covariances: sum of squared differences of the standard deviations.
    b = _with_moments(np.zeros(3), np.diag([2.0, 3.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(1 + 4)
    # Covariances that do not commute: against SciPy's matrix root.
    linalg = pytest.importorskip("scipy.linalg")
    c = _with_moments(np.ones(3), np.array([[2.0, 0, 0], [1, 1, 0], [-1, 0.5, 0.3]]))
    d = _with_moments(np.zeros(3), np.array([[1.0, 0, 0], [0, 3, 0], [2, 1, 1]]))
    ca, cb = np.cov(c, rowvar=False), np.cov(d, rowvar=False)
    expected = 3 + np.trace(ca + cb - 2 * linalg.sqrtm(ca @ cb).real)
    assert frechet_distance(c, d) == pytest.approx(expected)
    assert frechet_distance(d, c) == pytest.approx(expected)


def test_frechet_distance_where_a_feature_is_dead() -> None:
    a = np.random.default_rng(0).normal(size=(50, 4))
    a[:, 2] = 0
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 10])
def test_scores_of_known_predictions(classes: int) -> None:
    sure = np.eye(classes).repeat(3, axis=0)
    unsure = np.full((30, classes), 1 / classes)
    one = np.eye(classes)[[0] * 30]
    assert inception_score(sure) == pytest.approx(classes)
    assert inception_score(unsure) == pytest.approx(1)
    assert inception_score(one) == pytest.approx(1)
    assert modified_inception_score(unsure) == pytest.approx(1)
    # KL of different classes is ln 1e16 each, of equal ones 0.
    assert modified_inception_score(sure) == pytest.approx(1e16 ** (1 - 1 / classes), rel=1e-6)
    assert am_score(sure, sure) == pytest.approx(0, abs=1e-9)
    assert am_score(unsure, sure) == pytest.approx(np.log(classes))
    # Even reference, a single class generated: KL(even || one).
    assert am_score(one, sure) == pytest.approx(-np.log(classes) + (1 - 1 / classes) * np.log(1e16))


def test_modified_score_is_the_mean_over_pairs() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(4), size=7)
    pairs = [np.sum(a * np.log(a / b)) for a in p for b in p]
    assert modified_inception_score(p) == pytest.approx(np.exp(np.mean(pairs)))


def test_too_few_clips() -> None:
    one = Heard(np.ones((1, 2)) / 2, np.zeros((1, 3)))
    with pytest.raises(DataError, match="at least 2"):
        distances(one, one)


def _clips(count: int, seed: int) -> tuple[list[np.ndarray], list[str], list[str]]:
    random = np.random.default_rng(seed)
    clips, labels, groups = [], [], []
    for i in range(count):
        kind = ("high", "low", "noise")[i % 3]
        frequency = random.uniform(180, 240) * (4 if kind == "high" else 1)
        make = (pluck, tone)[i % 2]
        wave = make(frequency, random.uniform(0.15, 0.4), RATE, random)
        if kind == "noise":
            wave = random.normal(size=len(wave)).astype(np.float32)
        clips.append(wave * random.uniform(0.01, 0.5))
        labels.append(kind)
        groups.append(("string", "tone")[i % 2])
    return clips, labels, groups


def test_classifier_learns_and_repeats() -> None:
    clips, labels, groups = _clips(60, 0)
    fitted = ClipClassifier.fit(clips, labels, RATE, epochs=8)
    unseen, theirs, _ = _clips(30, 1)
    assert fitted.accuracy(unseen, theirs) >= 0.9
    again = ClipClassifier.fit(clips, labels, RATE, epochs=8)
    assert again.digest == fitted.digest
    heard = fitted.hear(unseen, batch_size=7)
    np.testing.assert_allclose(heard.probabilities.sum(1), 1)
    assert heard.features.shape == (30, 48)
    np.testing.assert_allclose(fitted.hear(unseen).features, heard.features, atol=1e-4)
    # One loudness: the level says nothing.
    quiet = fitted.hear([clip * 0.03 for clip in unseen])
    np.testing.assert_allclose(quiet.probabilities, heard.probabilities, atol=0.02)
    left_out = leave_one_out(clips[:30], labels[:30], groups[:30], RATE, epochs=2)
    assert sorted(left_out) == ["string", "tone"]


def test_bad_clips() -> None:
    with pytest.raises(DataError, match="without NaN"):
        normalise(np.array([0.1, np.nan]), RATE)
    with pytest.raises(DataError, match="must hold samples"):
        normalise(np.empty(0), RATE)
    with pytest.raises(UsageError, match="2 clips have 1 labels"):
        ClipClassifier.fit([np.ones(9), np.ones(9)], ["a"], RATE)
    with pytest.raises(UsageError, match="two"):
        ClipClassifier.fit([np.ones(9)], ["a"], RATE)
