"""Functions of vectors, written as LLVM instructions: exponentials, their kin, sums over lanes."""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir

from mambakernels._simd_lanes import LANES, Lanes, shuffle

# 2^f = 1 + f q(f) on [-1/2, 1/2]: least maximal relative error under that constraint (Lawson's
# reweighted least squares), so that decays next to 1 are not biased; 2.0e-9 before rounding.
_EXP2_FLOAT32 = (
    0.693147202855045, 0.24022647913631806, 0.055503324711580884, 0.0096184373574686,
    0.001339887440392883, 0.0001535336193896256,
)  # fmt: skip
# Taylor's, whose remainder is below 4e-18 there.
_EXP2_FLOAT64 = tuple(math.log(2) ** k / math.factorial(k) for k in range(1, 14))
LOG2_E, LN_2 = 1 / math.log(2), math.log(2)


def _split(x: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """2^x = scale * (1 + f q) with x - f a whole number: scale, f, q.

    Adding a large number rounds x to a whole one and leaves that, plus the exponent's bias, in the
    low bits: shifted left it is the float 2^round(x), 0 at -127 and infinity at 128.
    """
    bits, bias = (23, 127) if x.single else (52, 1023)
    # A comparison that NaN answers with no, so that NaN goes on.
    x = x.choose("<", -float(bias), -float(bias), x)
    x = x.choose(">", float(bias + 1), float(bias + 1), x)
    magic = 1.5 * 2.0**bits + bias
    shifted = x + magic
    f = x - (shifted - magic)
    whole = ir.VectorType(ir.IntType(32 if x.single else 64), x.lanes)
    raw = x.builder.bitcast(shifted.value, whole)
    raw = x.builder.shl(raw, ir.Constant(whole, [bits] * x.lanes))
    scale = Lanes(x.builder, x.builder.bitcast(raw, x.value.type))
    return scale, f, f.polynomial(_EXP2_FLOAT32 if x.single else _EXP2_FLOAT64)


def exp2(x: Lanes) -> Lanes:
    scale, f, q = _split(x)
    return scale * f.fma(q, 1.0)


def _exp_negative(x: Lanes) -> Lanes:
    """exp(-x), with what rounding x log2(e) loses put back."""
    high = float(np.float32(LOG2_E)) if x.single else LOG2_E
    x2 = x * -high
    lost = x.fma(-high, x2 * -1.0) + x * (high - LOG2_E)
    lost = lost.magnitude().choose("<", 1.0, lost, 0.0)  # an infinite x loses nothing
    power = exp2(x2)
    return power * lost.fma(LN_2, 1.0)


def sigmoid(x: Lanes) -> Lanes:
    return x.of(1.0) / (_exp_negative(x) + 1.0)


def softplus(x: Lanes) -> Lanes:
    """max(x, 0) + log(1 + w), w = exp(-|x|); log(1 + w) = 2 atanh(w / (2 + w)), argument <= 1/3."""
    w = _exp_negative(x.magnitude())
    s = w / (w + 2.0)
    terms = 8 if x.single else 17
    series = (s * s).polynomial(tuple(2.0 / (2 * k + 1) for k in range(terms)))
    return s.fma(series, x.choose("<", 0.0, 0.0, x))


def phi(x2: Lanes, delta: Lanes, inverse: Lanes) -> Lanes:
    """(2^x2 - 1) / A with x2 = delta A log2(e), inverse = 1 / A; delta times a series near 0."""
    scale, f, q = _split(x2)
    near = delta * q * LOG2_E
    far = (scale * f.fma(q, 1.0) - 1.0) * inverse
    return x2.magnitude().choose("<=", 0.5, near, far)


def phi_slope(x2: Lanes, delta: Lanes, inverse: Lanes) -> Lanes:
    """d phi / dA = (delta 2^x2 - phi) / A, or delta^2 (1/2 + x/3 + x^2/8 + ...) near 0."""
    terms = 8 if x2.single else 15
    coefficients = tuple((k + 1) / math.factorial(k + 2) for k in range(terms))
    near = delta * delta * (x2 * LN_2).polynomial(coefficients)
    far = (delta * exp2(x2) - phi(x2, delta, inverse)) * inverse
    return x2.magnitude().choose("<=", 0.5, near, far)


def sum_lanes(vectors: list[Lanes]) -> Lanes:
    """16 vectors to their 16 sums: halves are folded together until each lane is one sum."""
    builder = vectors[0].builder

    def shuffled(a: Lanes, b: Lanes, lanes: list[int]) -> Lanes:
        return Lanes(builder, shuffle(builder, a.value, b.value, lanes))

    # After a step with `width`, each vector holds 16 / width partial sums side by side.
    width = LANES
    while width > 1:
        half = width // 2
        low, high = [], []
        for source in (0, LANES):
            for start in range(0, LANES, width):
                low += range(source + start, source + start + half)
                high += range(source + start + half, source + start + width)
        count = len(vectors) // 2
        vectors = [
            shuffled(vectors[k], vectors[k + count], low)
            + shuffled(vectors[k], vectors[k + count], high)
            for k in range(count)
        ]
        width = half
    order = [0] * LANES  # where the sum of vector k stands
    position = [[k] for k in range(LANES)]
    while len(position) > 1:
        count = len(position) // 2
        position = [position[k] + position[k + count] for k in range(count)]
    for lane, k in enumerate(position[0]):
        order[k] = lane
    return shuffled(vectors[0], vectors[0], order)
