"""Adaptive linear prediction, compiled: refit, predict, weigh a logistic mixture, sample by sample.

Reads a sample and its bin, writes one cost; the work is a fit of (window x order + order^3 / 6)
multiplications every `refit` samples.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mambakernels._numba import jit

# Widths of the mixture's components, in units of the running mean error's.
FACTORS = np.array([0.25, 0.5, 1.0, 2.0, 4.0])
# A logistic distribution of scale s has the mean absolute deviation 2 ln(2) s.
_SCALE = 1 / (2 * math.log(2))
_FORGET = 0.98
_UNIFORM = 1e-3
_RIDGE = 1e-9
_RIDGE_POWER = 1e-10
_FIRST_FIT = 8


@jit(inner=True, fastmath={"contract", "reassoc"})
def _covariances(x: NDArray, end: int, count: int, order: int, out: NDArray) -> None:
    """out[i, j] = sum of x[t - i] x[t - j] over the `count` positions t before `end`, i <= j."""
    for j in range(order + 1):
        total = 0.0
        for t in range(end - count, end):
            total += x[t] * x[t - j]
        out[0, j] = total
    for i in range(1, order + 1):
        for j in range(i, order + 1):
            left = x[end - count - i] * x[end - count - j]
            out[i, j] = out[i - 1, j - 1] - x[end - i] * x[end - j] + left


@jit(inner=True)
def _solve(cov: NDArray, order: int, ridge: float, factor: NDArray, out: NDArray) -> None:
    """Coefficients by Cholesky's factorisation of cov[1:, 1:] + ridge."""
    for i in range(order):
        for j in range(i + 1):
            total = cov[j + 1, i + 1]
            if i == j:
                total += ridge
            for k in range(j):
                total -= factor[i, k] * factor[j, k]
            factor[i, j] = np.sqrt(max(total, 1e-12)) if i == j else total / factor[j, j]
    for i in range(order):
        total = cov[0, i + 1]
        for k in range(i):
            total -= factor[i, k] * out[k]
        out[i] = total / factor[i, i]
    for i in range(order - 1, -1, -1):
        total = out[i]
        for k in range(i + 1, order):
            total -= factor[k, i] * out[k]
        out[i] = total / factor[i, i]


@jit(inner=True)
def _mass(low: float, high: float) -> float:
    """Mass of the standard logistic distribution between two points."""
    if low > 0:  # by symmetry, where the difference keeps its digits
        low, high = -high, -low
    return 1 / (1 + np.exp(-high)) - 1 / (1 + np.exp(-low))


@jit
def predict(
    samples: NDArray,
    index: NDArray,
    edges: NDArray,
    position: int,
    order: int,
    window: int,
    refit: int,
    keep: float,
    coefficients: NDArray,
    log_weights: NDArray,
    running: NDArray,
    out: NDArray,
) -> None:
    """Cost in bits of each sample of a chunk.

    samples: `window + order` of the past, then the chunk. index: bins of the chunk. position:
    samples before the chunk. coefficients, log_weights, running: state, updated in place.
    """
    past = window + order
    cov, factor = np.zeros((order + 1, order + 1)), np.zeros((order, order))
    likelihood = np.zeros(len(FACTORS))
    symbols = len(edges) - 1
    for n in range(len(index)):
        now, seen = past + n, position + n
        if (seen >= _FIRST_FIT and seen % refit == 0) or seen == _FIRST_FIT:
            count = min(seen, window)
            _covariances(samples, now, count, order, cov)
            _solve(cov, order, _RIDGE * cov[1, 1] + _RIDGE_POWER * count, factor, coefficients)
        guess = 0.0
        for i in range(order):
            guess += coefficients[i] * samples[now - 1 - i]
        low, high = edges[index[n]], edges[index[n] + 1]
        largest = log_weights.max()
        total = mixed = 0.0
        for k in range(len(FACTORS)):
            scale = running[0] * FACTORS[k] * _SCALE
            mass = _mass((low - guess) / scale, (high - guess) / scale)
            likelihood[k] = (1 - _UNIFORM) * mass + _UNIFORM / symbols
            weight = np.exp(log_weights[k] - largest)
            total += weight
            mixed += weight * likelihood[k]
        out[n] = -np.log2(mixed / total)
        for k in range(len(FACTORS)):
            log_weights[k] = _FORGET * (log_weights[k] - largest) + np.log(likelihood[k])
        error = abs(samples[now] - guess)
        if np.isfinite(low) and np.isfinite(high):  # within a bin nothing is known
            error = max(error, (high - low) / 4)
        running[0] = keep * running[0] + (1 - keep) * (error + 1e-7)
