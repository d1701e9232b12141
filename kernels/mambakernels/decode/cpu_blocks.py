"""One step of a residual block, from its input vector to the same with the mixer's share added.

    mamba:     x += out_proj(y silu(z)),  u, z = in_proj(norm(x)),  u = silu(conv(u)),
               delta = softplus(dt_proj(x_proj(u)) + bias),  h = exp(delta A) h + delta B u,
               y = C h + D u
    diagonal:  x += glu(out_proj(gelu(y))),  h = a h + u,  y = 2 Re(c h) + D u, complex, float64
    then, where there is one, the gated MLP.

States lie with the channels innermost, (states, channels), so that a vector is 16 channels and
nothing is summed across lanes. Reads each weight and reads and writes each state once.
"""

from __future__ import annotations

import math

from mambakernels._numba import jit
from mambakernels._simd import (
    LANES,
    add,
    exp2,
    fma,
    load,
    load4,
    mul,
    repeat4,
    sigmoid,
    softplus,
    spread,
    stay_apart,
    store,
    sub,
    zero,
)
from mambakernels.decode.cpu_layout import (
    CONV,
    CONV_BIAS,
    CONV_STATE,
    DELTA,
    DELTA_BIAS,
    FC1,
    FC2,
    HIDDEN,
    IN,
    IN_BIAS,
    INNER,
    KIND,
    MAMBA,
    NORM,
    NORM2,
    OUT,
    OUT_BIAS,
    RANK,
    RATES,
    SELECT,
    SKIP,
    SSM_STATE,
    STATES,
    TAPS,
    WIDTH,
)
from mambakernels.decode.cpu_linear import add_to, linear, rms_norm


@jit(inner=True)
def run_blocks(blocks, first, count, eps, weights, wide_weights, state, wide_state, memory, wide,
               x, free):  # fmt: skip
    """Blocks first .. first + count - 1 on memory[x..]; scratch from `free` on."""
    stay_apart()
    for b in range(first, first + count):
        block = blocks[b]
        if block[KIND] == MAMBA:
            _mamba(block, eps, weights, state, memory, x, free)
        else:
            _diagonal(block, eps, weights, wide_weights, wide_state, memory, wide, x, free)
        if block[HIDDEN] > 0:
            _gated(block, eps, weights, memory, x, free)


@jit(inner=True)
def _padded(count):
    return (count + LANES - 1) // LANES * LANES


@jit(inner=True)
def _mamba(block, eps, weights, state, memory, x, free):
    stay_apart()
    width, inner, states, rank = block[WIDTH], _padded(block[INNER]), block[STATES], block[RANK]
    outputs = _padded(width)
    normed, spare = free + LANES, free
    u = normed + outputs
    z = u + inner
    selected = z + inner
    delta = selected + _padded(rank + 2 * states) + LANES
    added = delta + inner
    rms_norm(weights, block[NORM], eps, width, memory, x, normed, spare)
    linear(weights, block[IN], block[IN_BIAS], width, 2 * inner, memory, normed, u)
    _convolve(block, inner, weights, state, memory, u)
    linear(weights, block[SELECT], 0, block[INNER], _padded(rank + 2 * states), memory, u, selected)
    linear(weights, block[DELTA], block[DELTA_BIAS], rank, inner, memory, selected, delta)
    _recurrence(block, inner, weights, state, memory, u, z, delta, selected + rank)
    linear(weights, block[OUT], block[OUT_BIAS], block[INNER], outputs, memory, u, added)
    add_to(memory, x, added, width)


@jit(inner=True)
def _convolve(block, inner, weights, state, memory, u):
    """u = silu(causal convolution of u and the inputs before it), which move on by one."""
    stay_apart()
    taps, kernel, past = block[TAPS], block[CONV], block[CONV_STATE]
    for e in range(0, inner, LANES):
        now = load(memory, u + e)
        total = fma(now, load(weights, kernel + (taps - 1) * inner + e),
                    load(weights, block[CONV_BIAS] + e))  # fmt: skip
        for k in range(taps - 1):
            then = load(state, past + k * inner + e)
            total = fma(then, load(weights, kernel + k * inner + e), total)
            if k > 0:
                store(state, past + (k - 1) * inner + e, then)
        if taps > 1:
            store(state, past + (taps - 2) * inner + e, now)
        store(memory, u + e, mul(total, sigmoid(total)))


@jit(inner=True)
def _recurrence(block, inner, weights, state, memory, u, z, delta, maps):
    """u = (C h + D u) silu(z) after the step of h; `rates` are A log2(e)."""
    stay_apart()
    states, rates, h_at = block[STATES], block[RATES], block[SSM_STATE]
    e = 0
    while inner - e >= 4 * LANES:
        step = softplus(load4(memory, delta + e))
        value = load4(memory, u + e)
        entering = mul(step, value)
        y = mul(value, load4(weights, block[SKIP] + e))
        for n in range(states):
            at = n * inner + e
            h = fma(
                exp2(mul(step, load4(weights, rates + at))),
                load4(state, h_at + at),
                mul(entering, repeat4(spread(memory, maps + n))),
            )
            store(state, h_at + at, h)
            y = fma(h, repeat4(spread(memory, maps + states + n)), y)
        gate = load4(memory, z + e)
        store(memory, u + e, mul(y, mul(gate, sigmoid(gate))))
        e += 4 * LANES
    while e < inner:
        step = softplus(load(memory, delta + e))
        value = load(memory, u + e)
        entering = mul(step, value)
        y = mul(value, load(weights, block[SKIP] + e))
        for n in range(states):
            at = n * inner + e
            h = fma(
                exp2(mul(step, load(weights, rates + at))),
                load(state, h_at + at),
                mul(entering, spread(memory, maps + n)),
            )
            store(state, h_at + at, h)
            y = fma(h, spread(memory, maps + states + n), y)
        gate = load(memory, z + e)
        store(memory, u + e, mul(y, mul(gate, sigmoid(gate))))
        e += LANES


@jit(inner=True)
def _diagonal(block, eps, weights, wide_weights, wide_state, memory, wide, x, free):
    stay_apart()
    width, modes = block[WIDTH], block[STATES]
    channels = _padded(width)
    normed, spare = free + LANES, free
    value = normed + channels
    gate = value + channels
    rms_norm(weights, block[NORM], eps, width, memory, x, normed, spare)
    for d in range(channels):
        wide[d] = memory[normed + d]
    _oscillators(block, channels, modes, wide_weights, wide_state, wide)
    for d in range(width):
        y = wide[channels + d] + weights[block[SKIP] + d] * wide[d]
        memory[normed + d] = 0.5 * y * (1.0 + math.erf(y * math.sqrt(0.5)))
    linear(weights, block[OUT], block[OUT_BIAS], width, 2 * channels, memory, normed, value)
    for d in range(0, channels, LANES):
        share = mul(load(memory, value + d), sigmoid(load(memory, gate + d)))
        store(memory, x + d, add(load(memory, x + d), share))


@jit(inner=True)
def _oscillators(block, channels, modes, wide_weights, wide_state, wide):
    """wide[channels..] = Re(c h) summed over the modes after h = a h + u; 2 is within c."""
    stay_apart()
    poles, readout = block[RATES], block[RATES] + 2 * modes * channels
    h_at = block[SSM_STATE]
    imaginary = modes * channels
    for d in range(0, channels, LANES):
        u = load(wide, d)
        y = zero(wide)
        for m in range(modes):
            at = m * channels + d
            a, b = load(wide_weights, poles + at), load(wide_weights, poles + imaginary + at)
            p, q = load(wide_state, h_at + at), load(wide_state, h_at + imaginary + at)
            real = sub(fma(a, p, u), mul(b, q))
            other = fma(a, q, mul(b, p))
            store(wide_state, h_at + at, real)
            store(wide_state, h_at + imaginary + at, other)
            y = fma(load(wide_weights, readout + at), real, y)
            y = sub(y, mul(load(wide_weights, readout + imaginary + at), other))
        store(wide, channels + d, y)


@jit(inner=True)
def _gated(block, eps, weights, memory, x, free):
    """x += fc2(a silu(g)), a, g = fc1(norm(x))."""
    stay_apart()
    width, hidden = block[WIDTH], _padded(block[HIDDEN])
    outputs = _padded(width)
    normed, spare = free + LANES, free
    a = normed + outputs
    g = a + hidden
    added = g + hidden
    rms_norm(weights, block[NORM2], eps, width, memory, x, normed, spare)
    linear(weights, block[FC1], 0, width, 2 * hidden, memory, normed, a)
    for h in range(0, hidden, LANES):
        gate = load(memory, g + h)
        store(memory, a + h, mul(load(memory, a + h), mul(gate, sigmoid(gate))))
    linear(weights, block[FC2], 0, block[HIDDEN], outputs, memory, a, added)
    add_to(memory, x, added, width)
