"""The decoding step on the CPU: compiled vectors over the state's numbers, channel by channel.

Reads and writes each state once; nothing of the state's size is made beside it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mambakernels._numba import jit
from mambakernels._rows import KINDS, whole_vectors
from mambakernels._simd import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    LANES,
    add,
    exp2,
    fma,
    get,
    load,
    mul,
    phi,
    put,
    sigmoid,
    softplus,
    spread,
    stay_apart,
    store,
    sum_lanes,
    zero,
)
from mambakernels._threads import run

_PART = 1 << 16  # numbers of state that one thread takes at a time
_LOG2_E = 1.4426950408889634

STATE, U, DELTA, A, B, C, D, Z, BIAS, OUT, NEXT = range(11)  # rows of the table of tensors
_ADDRESS, _KIND, _STRIDE = range(3)


def forward(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    zoh: bool,
    out: Tensor,
    next_state: Tensor,
) -> None:
    """Write the output and the next state; `next_state` may be `state`, both contiguous."""
    batch, channels, size = state.shape
    if state.numel() == 0:
        out.zero_()
        return
    # Decoding calls this thousands of times a second: each tensor is asked few questions.
    tensors = (state.contiguous(), u, delta, A.contiguous(), B, C, D, z, delta_bias)
    given = [None if t is None else t if t.stride(-1) == 1 else t.contiguous() for t in tensors]
    described: list[int] = []
    for t in (*given, out, next_state):
        described += (0, 0, 0) if t is None else (t.data_ptr(), KINDS[t.dtype], t.stride(0))
    table = np.array(described, dtype=np.int64).reshape(-1, 3)
    blocks = -(-channels // LANES)
    share = max(1, _PART // (LANES * size))  # blocks of channels in one part
    total = batch * blocks
    scratch_size = (LANES + 5) * LANES + 2 * whole_vectors(size)
    dtype = np.float64 if state.dtype == torch.float64 else np.float32

    def part(i: int) -> None:
        scratch = np.empty(scratch_size, dtype)
        last = min((i + 1) * share, total)
        _step(table, scratch, i * share, last, blocks, channels, size, delta_softplus, zoh)

    if total <= share:
        part(0)
    else:
        run(part, -(-total // share))


@jit(inner=True)
def _read(table, which, row, column, lanes, like):
    stay_apart()
    address = table[which, _ADDRESS]
    kind = table[which, _KIND]
    at = row * table[which, _STRIDE] + column
    if kind == FLOAT32:
        return get(address, at, lanes, FLOAT32, 0, like)
    if kind == BFLOAT16:
        return get(address, at, lanes, BFLOAT16, 0, like)
    if kind == FLOAT16:
        return get(address, at, lanes, FLOAT16, 0, like)
    return get(address, at, lanes, FLOAT64, 0, like)


@jit(inner=True)
def _write(table, which, row, column, lanes, vector):
    stay_apart()
    address = table[which, _ADDRESS]
    kind = table[which, _KIND]
    at = row * table[which, _STRIDE] + column
    if kind == FLOAT32:
        put(address, at, lanes, FLOAT32, 0, vector)
    elif kind == BFLOAT16:
        put(address, at, lanes, BFLOAT16, 0, vector)
    elif kind == FLOAT16:
        put(address, at, lanes, FLOAT16, 0, vector)
    else:
        put(address, at, lanes, FLOAT64, 0, vector)


@jit(inner=True)
def _read_all(table, which, b, size, scratch, to):
    for n in range(0, size, LANES):
        store(scratch, to + n, _read(table, which, b, n, size - n, scratch))


@jit(inner=True)
def _inverse(vector, scratch, spare):
    store(scratch, spare, vector)
    for k in range(LANES):
        scratch[spare + k] = 1 / scratch[spare + k]
    return load(scratch, spare)


@jit
def _step(table, scratch, first, last, blocks, channels, size, use_softplus, zoh):
    deltas, inputs, spare = 0, LANES, 2 * LANES
    sums = 3 * LANES
    B_at = sums + LANES * LANES
    C_at = B_at + (size + LANES - 1) // LANES * LANES
    scratch[spare] = _LOG2_E
    log2_e = spread(scratch, spare)
    single = table[STATE, _KIND] == FLOAT32
    state, next_state, rates = table[STATE, _ADDRESS], table[NEXT, _ADDRESS], table[A, _ADDRESS]
    row_of_maps = -1
    for number in range(first, last):
        b, column = number // blocks, number % blocks * LANES
        lanes = min(LANES, channels - column)
        if b != row_of_maps:
            _read_all(table, B, b, size, scratch, B_at)
            _read_all(table, C, b, size, scratch, C_at)
            row_of_maps = b
        u = _read(table, U, b, column, lanes, scratch)
        delta = _read(table, DELTA, b, column, lanes, scratch)
        if table[BIAS, _ADDRESS] != 0:
            delta = add(delta, _read(table, BIAS, 0, column, lanes, scratch))
        if use_softplus:
            delta = softplus(delta)
        store(scratch, deltas, delta)
        store(scratch, inputs, u if zoh else mul(delta, u))
        for lane in range(lanes, LANES):
            store(scratch, sums + lane * LANES, zero(scratch))
        for lane in range(lanes):
            d = spread(scratch, deltas + lane)
            x = spread(scratch, inputs + lane)
            channel = column + lane
            at = (b * channels + channel) * size
            y = zero(scratch)
            for n in range(0, size, LANES):
                rest = size - n
                if single:
                    a = get(rates, channel * size + n, rest, FLOAT32, 0, scratch)
                    h = get(state, at + n, rest, FLOAT32, 0, scratch)
                else:
                    a = get(rates, channel * size + n, rest, FLOAT64, 0, scratch)
                    h = get(state, at + n, rest, FLOAT64, 0, scratch)
                x2 = mul(d, mul(a, log2_e))
                entering = mul(x, load(scratch, B_at + n))
                if zoh:
                    entering = mul(entering, phi(x2, d, _inverse(a, scratch, spare)))
                h = fma(exp2(x2), h, entering)
                if single:
                    put(next_state, at + n, rest, FLOAT32, 0, h)
                else:
                    put(next_state, at + n, rest, FLOAT64, 0, h)
                y = fma(h, load(scratch, C_at + n), y)
            store(scratch, sums + lane * LANES, y)
        y = sum_lanes(scratch, sums)
        if table[D, _ADDRESS] != 0:
            y = fma(_read(table, D, 0, column, lanes, scratch), u, y)
        if table[Z, _ADDRESS] != 0:
            z = _read(table, Z, b, column, lanes, scratch)
            y = mul(y, mul(z, sigmoid(z)))
        _write(table, OUT, b, column, lanes, y)
