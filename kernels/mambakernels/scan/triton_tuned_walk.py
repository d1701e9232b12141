"""Walking the state through a chunk without outputs: the tuned kernels' common part.

Work for each (batch, step, channel, state): one exponential and one multiplication for the decay,
a multiplication and a fused addition for the state. A tile's inputs are read while the tile before
it is walked.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mambakernels.scan.triton_tuned_tiles import (
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


@gluon.constexpr_function
def edge_layout(states, wide, states_first):
    """A tile (states, channels) with all states of a channel in a thread, in either order."""
    order = [0, 1] if states_first else [1, 0]
    return gl.BlockedLayout([states, wide], [1, 32], [1, 1], order)


@gluon.jit
def edge_indices(first_d, channels: gl.constexpr, N: gl.constexpr, layout: gl.constexpr,
                 NP: gl.constexpr, D: gl.constexpr):  # fmt: skip
    n = gl.arange(0, NP, layout=gl.SliceLayout(1, layout))
    d = first_d + gl.arange(0, D, layout=gl.SliceLayout(0, layout))
    return n[:, None], d[None, :], (n < N)[:, None] & (d < channels)[None, :]


@gluon.jit
def load_by_channel(
    target, base, first_d, scale: gl.constexpr, channels: gl.constexpr, N: gl.constexpr,
    WIDE: gl.constexpr,
):  # fmt: skip
    """(channels, state), or zeros for None, times scale into shared memory (states, channels)."""
    NP: gl.constexpr = target.shape[0]
    D: gl.constexpr = target.shape[1]
    layout: gl.constexpr = edge_layout(NP, WIDE, True)
    n, d, inside = edge_indices(first_d, channels, N, layout, NP, D)
    if base is not None:
        found = gl.load(base + (d * N + n), mask=inside, other=0.0) * scale
    else:
        found = gl.zeros([NP, D], gl.float32, layout)
    target._reinterpret(gl.float32, [NP, D], flat(2)).store(found)


@gluon.jit
def load_by_state(
    target, base, first_d, channels: gl.constexpr, N: gl.constexpr, WIDE: gl.constexpr
):
    """(state, channels) into shared memory."""
    NP: gl.constexpr = target.shape[0]
    D: gl.constexpr = target.shape[1]
    layout: gl.constexpr = edge_layout(NP, WIDE, False)
    n, d, inside = edge_indices(first_d, channels, N, layout, NP, D)
    found = gl.load(base + (n * channels + d), mask=inside, other=0.0)
    target._reinterpret(gl.float32, [NP, D], flat(2)).store(found)


@gluon.jit
def store_by_state(
    base, source, first_d, channels: gl.constexpr, N: gl.constexpr, WIDE: gl.constexpr
):
    """(state, channels) from shared memory."""
    NP: gl.constexpr = source.shape[0]
    D: gl.constexpr = source.shape[1]
    layout: gl.constexpr = edge_layout(NP, WIDE, False)
    n, d, inside = edge_indices(first_d, channels, N, layout, NP, D)
    found = source._reinterpret(gl.float32, [NP, D], flat(2)).load(layout)
    gl.store(base + (n * channels + d), found, mask=inside)


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
