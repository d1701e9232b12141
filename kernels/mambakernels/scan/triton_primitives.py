"""Scalar functions of the scan's kernels, in plain Triton: they run on a GPU and interpreted.

Everything is computed in the dtype of its argument (float32, or float64 for float64 inputs).
`tl.exp2` is one hardware instruction in float32, with a relative error of 2^-22; the rest is
written so that small values keep their relative accuracy, which `log(1 + exp(x))` does not.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Arguments that change with a sequence's length: no reason to compile a kernel again.
SIZES = (
    "length", "chunks", "chunk_length", "sub_length", "count", "items", "programs", "split",
    "groups",
)  # fmt: skip
LOG2E = tl.constexpr(1.4426950408889634)


def part(function):
    """A function that kernels call. Interpreted, it is left as plain Python: the interpreter
    prepares every call of a jitted function anew, which takes longer than the arithmetic."""
    return function if triton.knobs.runtime.interpret else triton.jit(function)


@part
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@part
def softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log1p(e), e = exp(-|x|).

    log1p(e) = 2 atanh(s), s = e / (2 + e) <= 1/3: a minimax polynomial in s^2, relative error
    1e-10 in exact arithmetic.
    """
    e = tl.exp(-tl.abs(x))
    if x.dtype == tl.float64:
        w = 1.0 + e
        tail = tl.where(w == 1.0, e, tl.log(w) * (e / tl.where(w == 1.0, 1.0, w - 1.0)))
    else:
        s = e / (2.0 + e)
        q = s * s
        p = 0.24409403 * q + 0.21394268
        p = p * q + 0.28620625
        p = p * q + 0.39998695
        p = p * q + 0.66666681
        tail = s * (p * q + 2.0)
    return tl.maximum(x, 0.0) + tail


@part
def step_size(delta, bias, SOFTPLUS: tl.constexpr):
    """delta as the recurrence uses it, and what it was before softplus."""
    raw = delta + bias
    if SOFTPLUS:
        step = softplus(raw)
    else:
        step = raw
    return step, raw


@part
def phi(x, exp_x):
    """phi1 = (exp(x) - 1) / x and phi2 = (phi1 - 1) / x, so that phi1' = phi1 - phi2.

    Near zero both come from the series phi2 = 1/2 (1 + x/3 (1 + x/4 (...))).
    """
    TERMS: tl.constexpr = 20 if x.dtype == tl.float64 else 12
    small = tl.abs(x) < 1.0
    near = tl.where(small, x, 0.0)
    series = near * 0.0 + 1.0
    for k in tl.static_range(TERMS, 2, -1):
        series = series * (near * (1.0 / k)) + 1.0
    series = series * 0.5
    far = tl.where(small, 1.0, x)
    phi1 = tl.where(small, 1.0 + near * series, (exp_x - 1.0) / far)
    phi2 = tl.where(small, series, (phi1 - 1.0) / far)
    return phi1, phi2


@part
def row_of(step, length, REVERSE: tl.constexpr):
    """Where in memory the scan's step lies, in int64."""
    row = tl.cast(step, tl.int64)
    if REVERSE:
        row = length - 1 - row
    return row


@part
def starts_segment(segments, stride, step, length, REVERSE: tl.constexpr):
    """Whether the state is reset before this step: its segment is not the previous step's."""
    here = row_of(step, length, REVERSE)
    before = row_of(tl.maximum(step - 1, 0), length, REVERSE)
    return tl.load(segments + here * stride) != tl.load(segments + before * stride)
