"""Temperature scaling: the minimum, recovery of a known temperature, never another argmax."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabio.calibration import (
    HIGHEST,
    LOWEST,
    fit_temperature,
    log_softmax,
    negative_log_likelihood,
)
from mambabio.metrics import reliability


def _sampled(seed: int, n: int, classes: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose calibrated temperature is known: labels are drawn from softmax(z / T)."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 3, (n, classes))
    p = np.exp(log_softmax(z / temperature))
    return z, (p.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_known_temperature_is_recovered(temperature: float) -> None:
    z, y = _sampled(1, 20_000, 4, temperature)
    assert fit_temperature(z, y) == pytest.approx(temperature, rel=0.05)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(2, 6))
def test_fitted_temperature_is_the_minimum_and_keeps_the_order(
    seed: int, n: int, classes: int
) -> None:
    rng = np.random.default_rng(seed)
    z, y = rng.normal(0, 2, (n, classes)), rng.integers(0, classes, n)
    t = fit_temperature(z, y)
    assert LOWEST <= t <= HIGHEST
    best = negative_log_likelihood(z, y, t)
    for other in (t * 1.05, t / 1.05, 1.0):
        if LOWEST <= other <= HIGHEST:
            assert best <= negative_log_likelihood(z, y, other) + 1e-12
    assert np.array_equal((z / t).argmax(axis=1), z.argmax(axis=1))
    shifted = z + rng.normal(0, 5, (n, 1))
    assert fit_temperature(shifted, y) == pytest.approx(t, rel=1e-6)


def test_calibration_lowers_the_calibration_error() -> None:
    z, y = _sampled(2, 20_000, 5, 2.5)
    right = z.argmax(axis=1) == y
    before = reliability(np.exp(log_softmax(z)).max(axis=1), right).ece
    after = reliability(np.exp(log_softmax(z / fit_temperature(z, y))).max(axis=1), right).ece
    assert before > 0.1
    assert after < 0.02


def test_the_ends_of_the_range() -> None:
    assert fit_temperature([[1.0, 0.0]] * 3, [0, 0, 0]) == LOWEST
    assert fit_temperature([[1.0, 0.0]] * 3, [1, 1, 1]) == HIGHEST
    assert fit_temperature([[0.0, 0.0]] * 3, [0, 1, 1]) == HIGHEST
    assert np.isfinite(negative_log_likelihood([[1e5, -1e5]], [1]))
    for bad in ([[np.nan, 0.0]], [[0.0, 0.0]] * 2, []):
        with pytest.raises(ValueError, match="fit_temperature"):
            fit_temperature(bad, [0])
