"""One symbol from scores: by temperature, top-k, top-p and the inverse of the distribution.

A uniform number u in [0, 1) takes the first symbol whose cumulated probability exceeds u; in
float64. The log-probability is the model's own, whatever the temperature.
"""

from __future__ import annotations

import math

import numpy as np

from mambakernels._numba import jit


@jit(inner=True)
def log_sum(scores, first, count):
    """log of the sum of exponentials of scores[first : first + count]; NaN stays NaN."""
    highest = -np.inf
    for k in range(count):
        s = scores[first + k]
        if not s <= highest:  # also for a NaN
            highest = s
    total = 0.0
    for k in range(count):
        total += math.exp(scores[first + k] - highest)
    return highest + math.log(total)


@jit(inner=True)
def _descending(scores, first, count):
    """A sorted copy. Shell's sort with Ciura's gaps: NumPy's takes Numba seconds to compile."""
    values = np.empty(count, np.float32)
    for k in range(count):
        values[k] = scores[first + k]
    for gap in (701, 301, 132, 57, 23, 10, 4, 1):
        for k in range(gap, count):
            value, place = values[k], k
            while place >= gap and values[place - gap] < value:
                values[place] = values[place - gap]
                place -= gap
            values[place] = value
    return values


@jit(inner=True)
def _threshold(scores, first, count, temperature, top_k, top_p):
    """The least score that is kept; equal ones are kept together."""
    order = _descending(scores, first, count)
    kept = count
    if 0 < top_k < count:
        kept = top_k
        while kept < count and order[kept] == order[kept - 1]:
            kept += 1
    if top_p < 1.0:
        total = 0.0
        for k in range(kept):
            total += math.exp((order[k] - order[0]) / temperature)
        before, k = 0.0, 0
        while k < kept and before < top_p * total:
            before += math.exp((order[k] - order[0]) / temperature)
            k += 1
        kept = max(k, 1)
    return order[kept - 1]


@jit(inner=True)
def _core(scores, first, levels, highest, temperature, least, exponent):
    """Mean of the first `levels` symbols, squared radius of their core, its highest score, and
    what gives the core its sum back after the exponent."""
    total, mean, variance = 0.0, 0.0, 0.0
    for k in range(levels):
        if scores[first + k] >= least:
            mass = math.exp((scores[first + k] - highest) / temperature)
            total += mass
            mean += mass * k
    if total == 0.0:  # all of it lies on the end event
        return 0.0, -1.0, 0.0, 0.0
    mean /= total
    for k in range(levels):
        if scores[first + k] >= least:
            mass = math.exp((scores[first + k] - highest) / temperature)
            variance += mass * (k - mean) * (k - mean)
    radius = max(4.0 * variance / total, 0.25)
    peak, before, after = -np.inf, 0.0, 0.0
    for k in range(levels):
        if scores[first + k] >= least and (k - mean) * (k - mean) <= radius:
            before += math.exp((scores[first + k] - highest) / temperature)
            peak = max(peak, scores[first + k])
    for k in range(levels):
        if scores[first + k] >= least and (k - mean) * (k - mean) <= radius:
            after += math.exp((scores[first + k] - peak) / temperature * exponent)
    return mean, radius, peak, 0.0 if after == 0.0 else before / after


@jit(inner=True)
def pick(scores, first, count, uniform, temperature, top_k, top_p, levels, exponent):
    """A symbol below `count`; the most likely one at temperature 0.

    Those below `levels` that lie within two standard deviations of the mean have their
    probabilities raised to `exponent`; together they keep theirs.
    """
    best = 0
    for k in range(count):
        if scores[first + k] > scores[first + best]:
            best = k
    if temperature == 0.0:
        return best
    least = -np.inf
    if 0 < top_k < count or top_p < 1.0:
        least = _threshold(scores, first, count, temperature, top_k, top_p)
    highest, total = scores[first + best], 0.0
    mean, radius, peak, restored = 0.0, -1.0, 0.0, 0.0
    levels = min(levels, count)
    if exponent > 1.0:
        mean, radius, peak, restored = _core(
            scores, first, levels, highest, temperature, least, exponent
        )
    for k in range(count):
        if scores[first + k] >= least:
            total += math.exp((scores[first + k] - highest) / temperature)
    aim, summed, chosen = uniform * total, 0.0, best
    for k in range(count):
        if scores[first + k] >= least:
            chosen = k
            if k < levels and (k - mean) * (k - mean) <= radius:
                summed += restored * math.exp((scores[first + k] - peak) / temperature * exponent)
            else:
                summed += math.exp((scores[first + k] - highest) / temperature)
            if summed > aim:
                break
    return chosen
