"""Copies are found, also louder, later and trimmed; new clips are not taken for copies."""

from __future__ import annotations

import numpy as np
import pytest

from mambaaudio.memorisation import memorisation
from mambaaudio.synth import pluck
from mambacore.errors import DataError

RATE = 8000


def _notes(count: int, seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [
        np.concatenate(
            [
                pluck(random.uniform(150, 900), random.uniform(0.05, 0.2), RATE, random)
                for _ in range(3)
            ]
        )
        for _ in range(count)
    ]


def test_copies_are_nearer_than_new_clips() -> None:
    training, real, new = _notes(40, 0), _notes(60, 1), _notes(30, 2)
    found = memorisation(new, real, training, RATE)
    assert found.share < 0.5
    assert (found.real < found.threshold).mean() == pytest.approx(0.05, abs=0.04)
    copies = [
        np.concatenate([np.zeros(300 + 17 * i), 0.3 * clip, np.zeros(200)])
        for i, clip in enumerate(training[:10])
    ]
    copied = memorisation(copies, real, training, RATE)
    assert copied.share >= 0.9
    assert copied.nearest.tolist() == list(range(10))
    assert np.median(copied.generated) < 0.8 * np.median(found.generated)
    exact = memorisation(training[:5], real, training, RATE)
    np.testing.assert_allclose(exact.generated, 0, atol=0.05)
    assert exact.to_dict()["share_below"] == 1


def test_nothing_to_compare() -> None:
    with pytest.raises(DataError, match="no training clips"):
        memorisation(_notes(1, 0), _notes(1, 1), [], RATE)
