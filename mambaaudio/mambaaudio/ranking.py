"""Ranking of generated clips by their likelihood, and rejection of the extremes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mambacore.errors import UsageError


def bits_per_sample(log_likelihood: float, samples: int) -> float:
    """Negative log-likelihood (nats, all symbols) as bits a sample; NaN without samples."""
    return -log_likelihood / math.log(2) / samples if samples else math.nan


def by_likelihood(bits: Sequence[float]) -> list[int]:
    """Numbers of the clips, likeliest (fewest bits a sample) first; NaN last, ties by number.

    >>> by_likelihood([2.0, 1.0, float("nan"), 1.5])
    [1, 3, 0, 2]
    """
    return sorted(range(len(bits)), key=lambda i: (math.isnan(bits[i]), bits[i], i))


def kept(bits: Sequence[float], *, likeliest: float = 0.0, unlikeliest: float = 0.0) -> list[int]:
    """Numbers of the clips, in their order, that remain when the extremes are rejected.

    The likeliest are often silence or a drone, the unlikeliest noise.

    Args:
        bits: a sample, by clip.
        likeliest, unlikeliest: shares to reject, each in [0, 1), together below 1.

    >>> kept([2.0, 1.0, 3.0, 1.5], likeliest=0.25, unlikeliest=0.25)
    [0, 3]
    """
    if not (0 <= likeliest and 0 <= unlikeliest and likeliest + unlikeliest < 1):
        raise UsageError(
            f"the rejected shares are {likeliest} and {unlikeliest}; each must be at least 0 and "
            "their sum below 1"
        )
    order = by_likelihood(bits)
    first, last = math.floor(likeliest * len(order)), math.floor(unlikeliest * len(order))
    return sorted(order[first : len(order) - last])
