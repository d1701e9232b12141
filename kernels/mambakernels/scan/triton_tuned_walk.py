"""Walking the state through a chunk without outputs: the tuned kernels' common part.

Work for each (batch, step, channel, state): one exponential and one multiplication for the decay,
a multiplication and a fused addition for the state. A tile's inputs are read while the tile before
it is walked.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mambakernels.scan.triton_tuned_tiles import (
    LOG2E,
    as_channels,
    as_row,
    flat,
    load_rows,
    penalties,
    read_states,
    read_tile,
    row_layout,
    rows,
    softplus,
    step_layout,
    store_rows,
)


@gluon.jit
def position(first, length, REVERSE: gl.constexpr):
    """The row in memory of a step of the scan."""
    at = first.to(gl.int64)
    if REVERSE:
        at = length - 1 - at
    return at


@gluon.jit
def step_of(raw, bias, inside, SOFTPLUS: gl.constexpr, MASKED: gl.constexpr):
    """delta as the recurrence uses it; 0, which changes no state, outside."""
    step = raw.to(gl.float32) + bias[None, :]
    if SOFTPLUS:
        step = softplus(step)
    if MASKED:
        step = gl.where(inside, step, 0.0)
    return step


@gluon.jit
def load_channels(base, d, in_d, layout: gl.constexpr):
    """A number for each channel, zeros if there are none."""
    if base is not None:
        return gl.load(base + d, mask=in_d, other=0.0)
    else:
        return gl.zeros(d.shape, gl.float32, layout)


@gluon.jit
def load_exponents(target, A, d, in_d, N: gl.constexpr):
    """A log2(e) into shared memory, (states, channels)."""
    for n in range(N):
        target.index(n).store(gl.load(A + d * N + n, mask=in_d, other=0.0) * LOG2E)


@gluon.jit
def load_initial(
    target, initial, d, in_d, batch, channels: gl.constexpr, N: gl.constexpr, layout: gl.constexpr
):
    """(batch, channels, state) or zeros into shared memory, (states, channels)."""
    for n in range(N):
        if initial is not None:
            found = gl.load(initial + (batch * channels + d) * N + n, mask=in_d, other=0.0)
        else:
            found = gl.zeros(d.shape, gl.float32, layout)
        target.index(n).store(found)


@gluon.jit
def load_edge(target, edges, d, in_d, channels: gl.constexpr, N: gl.constexpr):
    """A chunk's (state, channels) into shared memory."""
    for n in range(N):
        target.index(n).store(gl.load(edges + n * channels + d, mask=in_d, other=0.0))


@gluon.jit
def walk_states(
    u, delta, B, segments, A2, h_rows, B_tile, scratch, bias_D, first_d, start, steps, length,
    channels: gl.constexpr, u_row: gl.constexpr, delta_row: gl.constexpr, B_row: gl.constexpr,
    segment_row: gl.constexpr, SOFTPLUS: gl.constexpr, REVERSE: gl.constexpr,
    N: gl.constexpr, T: gl.constexpr, WIDE: gl.constexpr, PAIR: gl.constexpr,
    MASKED: gl.constexpr,
):  # fmt: skip
    """h_rows from the state before `steps` steps to the state after; returns the sum of the steps,
    infinite if a segment starts among them. scratch (tiles, N, D), or None: the state before every
    tile.
    """
    D: gl.constexpr = 32 * WIDE
    NP: gl.constexpr = B_tile.shape[0]
    by_d: gl.constexpr = row_layout(T, WIDE)
    by_t: gl.constexpr = step_layout(T, WIDE)
    sign: gl.constexpr = -1 if REVERSE else 1
    B_rows = B_tile._reinterpret(gl.float32, [NP, T], flat(1))
    t = gl.arange(0, T, layout=by_t)
    lane = gl.arange(0, D, layout=by_d)
    d = first_d + lane
    in_d = (d < channels)[None, :]
    total = gl.zeros([D], gl.float32, by_d)

    at = position(start, length, REVERSE)
    inside = (t < steps)[:, None] & in_d
    raw_delta = read_tile(delta + at * delta_row, sign * delta_row, t, d, inside, MASKED)
    raw_u = read_tile(u + at * u_row, sign * u_row, t, d, inside, MASKED)
    raw_B = read_states(B + at * B_row, sign * B_row, steps, N, NP, T)
    for done in range(0, steps, T):
        step = step_of(raw_delta, bias_D, inside, SOFTPLUS, MASKED)
        taken_in = step * raw_u.to(gl.float32)
        B_tile.store(raw_B.to(gl.float32))
        if segments is not None:
            at = position(start + done, length, REVERSE)
            penalty = penalties(
                segments + at * segment_row, sign * segment_row, start + done, steps - done, T, WIDE
            )[:, None]
            total += gl.sum(gl.where(penalty < 0.0, float("inf"), step), 0)
        else:
            total += gl.sum(step, 0)
        following = gl.minimum(done + T, (steps - 1) // T * T)  # the last tile is read again
        at = position(start + following, length, REVERSE)
        inside = (t < steps - following)[:, None] & in_d
        raw_delta = read_tile(delta + at * delta_row, sign * delta_row, t, d, inside, MASKED)
        raw_u = read_tile(u + at * u_row, sign * u_row, t, d, inside, MASKED)
        raw_B = read_states(B + at * B_row, sign * B_row, steps - following, N, NP, T)
        gl.thread_barrier()
        for pair in range(N // PAIR):
            before = load_rows(h_rows, pair, PAIR, T, WIDE)
            after = ()
            for k in gl.static_range(PAIR):
                n = pair * PAIR + k
                if scratch is not None:
                    gl.store(scratch + (done // T * N + n) * D + lane, before[k])
                exponent = step * A2.index(n).load(by_d)[None, :]
                if segments is not None:
                    exponent += penalty
                a = rows(gl.exp2(exponent))
                x = rows(taken_in * B_rows.index(n).load(by_t)[:, None])
                h = as_row(before[k], a[0])
                for i in gl.static_range(T):
                    h = a[i] * h + x[i]
                after = after + (as_channels(h, by_d),)  # noqa: RUF005
            store_rows(h_rows, pair, after, WIDE)
        gl.thread_barrier()
    return total
