"""The backward's loops over the steps of one tile, for 16 channels: recall, then sweep back.

Arguments are places in the scratch array; what they hold is named in `cpu_backward.backward`.
"""

from __future__ import annotations

from mambakernels._numba import jit
from mambakernels._simd import (
    LANES,
    add,
    exp2,
    fma,
    fold4,
    ln_2,
    load,
    load4,
    mul,
    one,
    phi,
    phi_slope,
    repeat4,
    sigmoid,
    spread4,
    stay_apart,
    store,
    sub,
    sum_lanes,
    zero,
    zero4,
)


@jit(inner=True)
def recall_euler(
    start, stop, states, stride, per_block, scratch, delta, taken_in, rates, B_at, C_at,
    entering, history, decays, y,
):  # fmt: skip
    """The forward's steps; keeps the state after each and its decay."""
    stay_apart()
    for i in range(start, stop):
        before = entering if i == start else history + i * per_block
        after = history + (i + 1) * per_block
        decay = decays + i * per_block
        d = repeat4(load(scratch, delta + i * LANES))
        x = repeat4(load(scratch, taken_in + i * LANES))
        total = zero4(scratch)
        for n in range(0, states, 4):
            a = exp2(mul(d, load4(scratch, rates + n * LANES)))
            store(scratch, decay + n * LANES, a)
            entered = mul(x, spread4(scratch, B_at + i * stride + n))
            h = fma(a, load4(scratch, before + n * LANES), entered)
            store(scratch, after + n * LANES, h)
            total = fma(h, spread4(scratch, C_at + i * stride + n), total)
        store(scratch, y + i * LANES, fold4(total))


@jit(inner=True)
def recall_zoh(
    start, stop, states, stride, per_block, scratch, delta, u, rates, inverses, B_at, C_at,
    entering, history, decays, y,
):  # fmt: skip
    stay_apart()
    for i in range(start, stop):
        before = entering if i == start else history + i * per_block
        after = history + (i + 1) * per_block
        decay = decays + i * per_block
        d = repeat4(load(scratch, delta + i * LANES))
        x = repeat4(load(scratch, u + i * LANES))
        total = zero4(scratch)
        for n in range(0, states, 4):
            x2 = mul(d, load4(scratch, rates + n * LANES))
            a = exp2(x2)
            store(scratch, decay + n * LANES, a)
            weight = phi(x2, d, load4(scratch, inverses + n * LANES))
            entered = mul(mul(weight, x), spread4(scratch, B_at + i * stride + n))
            h = fma(a, load4(scratch, before + n * LANES), entered)
            store(scratch, after + n * LANES, h)
            total = fma(h, spread4(scratch, C_at + i * stride + n), total)
        store(scratch, y + i * LANES, fold4(total))


@jit(inner=True)
def add_sums(scratch, at, states, to):
    """Sums over the lanes of `states` vectors, added to as many numbers."""
    for n in range(0, states, LANES):
        store(scratch, to + n, add(load(scratch, to + n), sum_lanes(scratch, at + n * LANES)))


@jit(inner=True)
def sweep_euler(
    start, stop, states, stride, per_block, scratch, delta, taken_in, dy, rates, B_at, C_at,
    entering, history, decays, gradient, dA, to_dB, to_dC, dB_at, dC_at, from_input, from_rate,
):  # fmt: skip
    """Back over the steps. from_input: sum of g B; from_rate: sum of q A log2(e)."""
    stay_apart()
    for i in range(stop - 1, start - 1, -1):
        before = entering if i == start else history + i * per_block
        after = history + (i + 1) * per_block
        decay = decays + i * per_block
        d = repeat4(load(scratch, delta + i * LANES))
        x = repeat4(load(scratch, taken_in + i * LANES))
        dy_i = repeat4(load(scratch, dy + i * LANES))
        by_input = zero4(scratch)
        by_rate = zero4(scratch)
        for n in range(0, states, 4):
            at = n * LANES
            weight = spread4(scratch, C_at + i * stride + n)
            g = fma(dy_i, weight, load4(scratch, gradient + at))
            store(scratch, to_dC + at, mul(dy_i, load4(scratch, after + at)))
            store(scratch, to_dB + at, mul(x, g))
            by_input = fma(g, spread4(scratch, B_at + i * stride + n), by_input)
            g = mul(g, load4(scratch, decay + at))
            store(scratch, gradient + at, g)
            q = mul(g, load4(scratch, before + at))
            by_rate = fma(q, load4(scratch, rates + at), by_rate)
            store(scratch, dA + at, fma(q, d, load4(scratch, dA + at)))
        store(scratch, from_input + i * LANES, fold4(by_input))
        store(scratch, from_rate + i * LANES, fold4(by_rate))
        add_sums(scratch, to_dB, states, dB_at + i * stride)
        add_sums(scratch, to_dC, states, dC_at + i * stride)


@jit(inner=True)
def sweep_zoh(
    start, stop, states, stride, per_block, scratch, delta, u, dy, rates, inverses, B_at, C_at,
    entering, history, decays, gradient, dA, to_dB, to_dC, dB_at, dC_at,
    from_input, from_rate, from_hold,
):  # fmt: skip
    """The same with phi for delta; from_hold: sum of g a B, as d phi / d delta = a."""
    stay_apart()
    for i in range(stop - 1, start - 1, -1):
        before = entering if i == start else history + i * per_block
        after = history + (i + 1) * per_block
        decay = decays + i * per_block
        d = repeat4(load(scratch, delta + i * LANES))
        x = repeat4(load(scratch, u + i * LANES))
        dy_i = repeat4(load(scratch, dy + i * LANES))
        by_input = zero4(scratch)
        by_rate = zero4(scratch)
        by_hold = zero4(scratch)
        for n in range(0, states, 4):
            at = n * LANES
            weight = spread4(scratch, C_at + i * stride + n)
            g = fma(dy_i, weight, load4(scratch, gradient + at))
            store(scratch, to_dC + at, mul(dy_i, load4(scratch, after + at)))
            rate = load4(scratch, rates + at)
            inverse = load4(scratch, inverses + at)
            x2 = mul(d, rate)
            held = mul(g, phi(x2, d, inverse))
            store(scratch, to_dB + at, mul(x, held))
            b = spread4(scratch, B_at + i * stride + n)
            by_input = fma(held, b, by_input)
            entered = mul(mul(g, x), b)
            more = fma(entered, phi_slope(x2, d, inverse), load4(scratch, dA + at))
            g = mul(g, load4(scratch, decay + at))
            by_hold = fma(g, b, by_hold)
            store(scratch, gradient + at, g)
            q = mul(g, load4(scratch, before + at))
            by_rate = fma(q, rate, by_rate)
            store(scratch, dA + at, fma(q, d, more))
        store(scratch, from_input + i * LANES, fold4(by_input))
        store(scratch, from_rate + i * LANES, fold4(by_rate))
        store(scratch, from_hold + i * LANES, fold4(by_hold))
        add_sums(scratch, to_dB, states, dB_at + i * stride)
        add_sums(scratch, to_dC, states, dC_at + i * stride)


@jit(inner=True)
def enter_gate(rows, scratch, dy, z, y):
    """Through out = y silu(z): dy becomes dout silu(z), z becomes dz = dout y silu'(z)."""
    stay_apart()
    for i in range(0, rows * LANES, LANES):
        dout = load(scratch, dy + i)
        value = load(scratch, z + i)
        gate = sigmoid(value)
        silu = mul(value, gate)
        slope = fma(silu, sub(one(scratch), gate), gate)
        store(scratch, dy + i, mul(dout, silu))
        store(scratch, z + i, mul(mul(dout, slope), load(scratch, y + i)))


@jit(inner=True)
def finish(
    rows, zoh, use_softplus, scratch, delta, slope, u, dy, from_input, from_rate, from_hold,
    D_lanes, sum_D, sum_bias, du, ddelta,
):  # fmt: skip
    """The gradients of u and delta of a tile, and the tile's share of those of D and the bias."""
    stay_apart()
    weight = load(scratch, D_lanes)
    by_D = zero(scratch)
    by_bias = zero(scratch)
    for i in range(0, rows * LANES, LANES):
        x = load(scratch, u + i)
        dy_i = load(scratch, dy + i)
        of_input = load(scratch, from_input + i)
        of_delta = of_input
        if zoh:
            of_delta = load(scratch, from_hold + i)
        else:
            of_input = mul(of_input, load(scratch, delta + i))
        of_rate = mul(load(scratch, from_rate + i), ln_2(scratch))
        of_delta = fma(of_delta, x, of_rate)
        if use_softplus:
            of_delta = mul(of_delta, load(scratch, slope + i))
        store(scratch, du + i, fma(dy_i, weight, of_input))
        store(scratch, ddelta + i, of_delta)
        by_D = fma(dy_i, x, by_D)
        by_bias = add(by_bias, of_delta)
    store(scratch, sum_D, add(load(scratch, sum_D), by_D))
    store(scratch, sum_bias, add(load(scratch, sum_bias), by_bias))
