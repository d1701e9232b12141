"""Temperature scaling: one number that makes a classifier's confidence true on average.

The calibrated probabilities are softmax(logits / T). T > 1 softens an over-confident model. The
order of the classes never changes, so accuracy does not either.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mambacore.errors import UsageError

# Beyond these the model is either always right or no better than chance on what it was given,
# and the best temperature runs away to zero or infinity.
LOWEST, HIGHEST = 0.05, 20.0


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """log of softmax over the last axis, shifted so that nothing overflows."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def negative_log_likelihood(logits: ArrayLike, true: ArrayLike, temperature: float = 1.0) -> float:
    """Mean of -log softmax(logits / temperature)[true], in nats.

    >>> round(negative_log_likelihood([[0.0, 0.0]], [1]), 4)
    0.6931
    """
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    truth = np.asarray(true, dtype=np.int64)
    return float(-log_softmax(scaled)[np.arange(len(truth)), truth].mean())


def fit_temperature(logits: ArrayLike, true: ArrayLike) -> float:
    """The temperature with the smallest negative log-likelihood on held-out windows.

    The loss is convex in b = 1/T and its slope, mean(sum_c p_c z_c - z_true), increases with b,
    so bisection on log b finds the one root.

    Args:
        logits: (n, classes) of validation windows, at temperature 1; log-probabilities serve
            as well, since a constant added to a row changes nothing.
        true: (n,) class ids.

    Returns:
        T in [0.05, 20]; an end of the range when every window is right (the loss falls for ever
        as T goes to 0) or the logits say nothing.

    Raises:
        UsageError: no windows, shapes that do not agree, values that are not finite.

    Source: Guo et al., On Calibration of Modern Neural Networks (2017), section 4.2.

    >>> z = [[4.0, 0.0]] * 4  # sure to 0.98, but right three times in four
    >>> round(fit_temperature(z, [0, 0, 0, 1]), 3)  # 4 / ln 3
    3.641
    """
    z = np.asarray(logits, dtype=np.float64)
    truth = np.asarray(true, dtype=np.int64)
    if z.ndim != 2 or truth.shape != z.shape[:1] or not z.size:
        raise UsageError(
            f"fit_temperature needs logits (windows, classes) and one class id for each window, "
            f"not {z.shape} and {truth.shape}"
        )
    if not np.isfinite(z).all():
        raise UsageError("fit_temperature was given logits that are not finite")
    z = z - z.max(axis=1, keepdims=True)
    target = z[np.arange(len(truth)), truth].mean()

    def slope(b: float) -> float:
        p = np.exp(log_softmax(b * z))
        return float((p * z).sum(axis=1).mean() - target)

    low, high = -np.log(HIGHEST), -np.log(LOWEST)
    if slope(np.exp(low)) >= 0:
        return HIGHEST
    if slope(np.exp(high)) <= 0:
        return LOWEST
    for _ in range(60):
        middle = (low + high) / 2
        if slope(np.exp(middle)) < 0:
            low = middle
        else:
            high = middle
    return float(np.exp(-(low + high) / 2))
