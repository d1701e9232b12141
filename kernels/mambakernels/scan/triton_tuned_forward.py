"""The scan's forward pass, tuned: the same passes and memory as in `triton_plain_forward`.

Work for each (batch, step, channel, state): one exponential and one multiplication for the decay,
a multiplication and an addition for the state, and one more of each for the output. The
exponential is the bound: 16 a clock and multiprocessor, so 8 cycles a warp. Around it stand, for
each (batch, step, channel), two special functions for softplus and two for the gate.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mambakernels.scan.triton_tuned_tiles import (
    LOG2E,
    as_channels,
    as_row,
    flat,
    load_states,
    load_tile,
    penalties,
    row_layout,
    rows,
    sigmoid,
    softplus,
    step_layout,
    store_tile,
    tile_layout,
    tile_of,
)


@gluon.jit
def position(first, length, REVERSE: gl.constexpr):
    """The row in memory of a step of the scan."""
    at = first.to(gl.int64)
    if REVERSE:
        at = length - 1 - at
    return at


@gluon.jit
def step_tile(delta, stride, t, d, inside, bias, SOFTPLUS: gl.constexpr, MASKED: gl.constexpr):
    step = load_tile(delta, stride, t, d, inside, MASKED) + bias[None, :]
    if SOFTPLUS:
        step = softplus(step)
    if MASKED:
        step = gl.where(inside, step, 0.0)
    return step


@gluon.jit
def summarise(
    u, delta, A, B, bias, segments, summaries,
    length, channels: gl.constexpr, chunks, chunk_length,
    u_batch, u_row: gl.constexpr, delta_batch, delta_row: gl.constexpr,
    B_batch, B_row: gl.constexpr, segment_batch, segment_row: gl.constexpr,
    SOFTPLUS: gl.constexpr, REVERSE: gl.constexpr,
    N: gl.constexpr, NP: gl.constexpr, T: gl.constexpr, WIDE: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    D: gl.constexpr = 32 * WIDE
    by_d: gl.constexpr = row_layout(T, WIDE)
    by_t: gl.constexpr = step_layout(T, WIDE)
    blocks = gl.cdiv(channels, D)
    program = gl.program_id(0)
    chunk = (program // blocks) % chunks
    batch = (program // blocks // chunks).to(gl.int64)
    d = (program % blocks) * D + gl.arange(0, D, layout=by_d)
    t = gl.arange(0, T, layout=by_t)
    in_d = d < channels
    B_tile = gl.allocate_shared_memory(gl.float32, [NP, T], flat(2))
    B_rows = B_tile._reinterpret(gl.float32, [NP, T], flat(1))
    A2 = gl.allocate_shared_memory(gl.float32, [NP, D], flat(1))
    h_rows = gl.allocate_shared_memory(gl.float32, [NP, D], flat(1))
    for n in range(N):
        A2.index(n).store(gl.load(A + d * N + n, mask=in_d, other=0.0) * LOG2E)
        h_rows.index(n).store(gl.zeros([D], gl.float32, by_d))
    if bias is not None:
        bias_D = gl.load(bias + d, mask=in_d, other=0.0)
    else:
        bias_D = gl.zeros([D], gl.float32, by_d)
    total = gl.zeros([D], gl.float32, by_d)

    start = chunk * chunk_length
    steps = gl.minimum(chunk_length, length - start)
    sign: gl.constexpr = -1 if REVERSE else 1
    for done in range(0, steps, T):
        at = position(start + done, length, REVERSE)
        left = steps - done
        inside = (t < left)[:, None] & in_d[None, :]
        step = step_tile(
            delta + batch * delta_batch + at * delta_row, sign * delta_row, t, d, inside, bias_D,
            SOFTPLUS, MASKED,
        )  # fmt: skip
        u_tile = load_tile(u + batch * u_batch + at * u_row, sign * u_row, t, d, inside, MASKED)
        load_states(B_tile, B + batch * B_batch + at * B_row, sign * B_row, left, N)
        taken_in = step * u_tile
        if segments is not None:
            penalty = penalties(
                segments + batch * segment_batch + at * segment_row, sign * segment_row,
                start + done, left, T, WIDE,
            )[:, None]  # fmt: skip
            total += gl.sum(gl.where(penalty < 0.0, float("inf"), step), 0)
        else:
            total += gl.sum(step, 0)
        gl.thread_barrier()
        for n in range(N):
            exponent = step * A2.index(n).load(by_d)[None, :]
            if segments is not None:
                exponent += penalty
            a = rows(gl.exp2(exponent))
            x = rows(taken_in * B_rows.index(n).load(by_t)[:, None])
            h = as_row(h_rows.index(n).load(by_d), a[0])
            for i in gl.static_range(T):
                h = a[i] * h + x[i]
            h_rows.index(n).store(as_channels(h, by_d))
        gl.thread_barrier()
    out = summaries + (batch * chunks + chunk) * (N + 1) * channels
    for n in range(N):
        gl.store(out + n * channels + d, h_rows.index(n).load(by_d), mask=in_d)
    gl.store(out + N * channels + d, total, mask=in_d)


@gluon.jit
def scan_outputs(
    u, delta, A, B, C, D_skip, z, bias, initial, segments, starts, out, final,
    length, channels: gl.constexpr, chunks, chunk_length,
    u_batch, u_row: gl.constexpr, delta_batch, delta_row: gl.constexpr,
    B_batch, B_row: gl.constexpr, C_batch, C_row: gl.constexpr, z_batch, z_row: gl.constexpr,
    segment_batch, segment_row: gl.constexpr,
    SOFTPLUS: gl.constexpr, REVERSE: gl.constexpr,
    N: gl.constexpr, NP: gl.constexpr, T: gl.constexpr, WIDE: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    D: gl.constexpr = 32 * WIDE
    tiles: gl.constexpr = tile_layout(T, WIDE)
    by_d: gl.constexpr = row_layout(T, WIDE)
    by_t: gl.constexpr = step_layout(T, WIDE)
    blocks = gl.cdiv(channels, D)
    program = gl.program_id(0)
    chunk = (program // blocks) % chunks
    batch = (program // blocks // chunks).to(gl.int64)
    d = (program % blocks) * D + gl.arange(0, D, layout=by_d)
    t = gl.arange(0, T, layout=by_t)
    in_d = d < channels
    B_tile = gl.allocate_shared_memory(gl.float32, [NP, T], flat(2))
    C_tile = gl.allocate_shared_memory(gl.float32, [NP, T], flat(2))
    B_rows = B_tile._reinterpret(gl.float32, [NP, T], flat(1))
    C_rows = C_tile._reinterpret(gl.float32, [NP, T], flat(1))
    A2 = gl.allocate_shared_memory(gl.float32, [NP, D], flat(1))
    h_rows = gl.allocate_shared_memory(gl.float32, [NP, D], flat(1))
    own_state = (batch * channels + d) * N
    for n in range(N):
        A2.index(n).store(gl.load(A + d * N + n, mask=in_d, other=0.0) * LOG2E)
        if starts is not None:
            at_chunk = starts + (batch * chunks + chunk) * (N + 1) * channels
            h_rows.index(n).store(gl.load(at_chunk + n * channels + d, mask=in_d, other=0.0))
        elif initial is not None:
            h_rows.index(n).store(gl.load(initial + own_state + n, mask=in_d, other=0.0))
        else:
            h_rows.index(n).store(gl.zeros([D], gl.float32, by_d))
    if bias is not None:
        bias_D = gl.load(bias + d, mask=in_d, other=0.0)
    else:
        bias_D = gl.zeros([D], gl.float32, by_d)
    if D_skip is not None:
        skip_D = gl.load(D_skip + d, mask=in_d, other=0.0)

    start = chunk * chunk_length
    steps = gl.minimum(chunk_length, length - start)
    sign: gl.constexpr = -1 if REVERSE else 1
    for done in range(0, steps, T):
        at = position(start + done, length, REVERSE)
        left = steps - done
        inside = (t < left)[:, None] & in_d[None, :]
        step = step_tile(
            delta + batch * delta_batch + at * delta_row, sign * delta_row, t, d, inside, bias_D,
            SOFTPLUS, MASKED,
        )  # fmt: skip
        u_tile = load_tile(u + batch * u_batch + at * u_row, sign * u_row, t, d, inside, MASKED)
        load_states(B_tile, B + batch * B_batch + at * B_row, sign * B_row, left, N)
        load_states(C_tile, C + batch * C_batch + at * C_row, sign * C_row, left, N)
        taken_in = step * u_tile
        if D_skip is not None:
            y = skip_D[None, :] * u_tile
        else:
            y = gl.zeros([T, D], gl.float32, tiles)
        if segments is not None:
            penalty = penalties(
                segments + batch * segment_batch + at * segment_row, sign * segment_row,
                start + done, left, T, WIDE,
            )[:, None]  # fmt: skip
        gl.thread_barrier()
        for n in range(N):
            exponent = step * A2.index(n).load(by_d)[None, :]
            if segments is not None:
                exponent += penalty
            a = rows(gl.exp2(exponent))
            x = rows(taken_in * B_rows.index(n).load(by_t)[:, None])
            h = as_row(h_rows.index(n).load(by_d), a[0])
            states = ()
            for i in gl.static_range(T):
                h = a[i] * h + x[i]
                states = states + (h,)  # noqa: RUF005
            h_rows.index(n).store(as_channels(h, by_d))
            h_tile = gl.convert_layout(tile_of(states), tiles, assert_trivial=True)
            y += h_tile * C_rows.index(n).load(by_t)[:, None]
        if z is not None:
            z_tile = load_tile(z + batch * z_batch + at * z_row, sign * z_row, t, d, inside, MASKED)
            y *= z_tile * sigmoid(z_tile)
        store_tile(out + (batch * length + at) * channels, sign * channels, t, d, inside, y, MASKED)
        gl.thread_barrier()
    if starts is None:
        for n in range(N):
            gl.store(final + own_state + n, h_rows.index(n).load(by_d), mask=in_d)
