"""The tuned backward pass's first kernel: what each chunk hands to its left.

See `triton_plain_backward` for the passes and `triton_tuned_gradients` for the last one.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mambakernels.scan.triton_tuned_tiles import (
    LOG2E,
    SIZES,
    as_channels,
    as_row,
    flat,
    load_rows,
    penalties,
    read_states,
    read_tile,
    row_layout,
    rows,
    sigmoid,
    step_layout,
    store_rows,
    tile_layout,
    tile_of,
)
from mambakernels.scan.triton_tuned_walk import (
    load_by_channel,
    load_channels,
    position,
    step_of,
    store_by_state,
)


@gluon.jit
def running_sums(tile, before, by_d: gl.constexpr):
    """A tile's sums over the steps so far, and the last one, to go on from."""
    single = rows(tile)
    so_far = as_row(before, single[0])
    sums = ()
    for i in gl.static_range(len(single)):
        so_far += single[i]
        sums = sums + (so_far,)  # noqa: RUF005
    found = gl.convert_layout(tile_of(sums), by_d.parent, assert_trivial=True)
    return found, as_channels(so_far, by_d)


@gluon.jit(do_not_specialize=SIZES)
def summarise_adjoints(
    dout, delta, A, C, z, bias, segments, adjoints,
    length, channels: gl.constexpr, chunks, chunk_length,
    dout_batch, dout_row: gl.constexpr, delta_batch, delta_row: gl.constexpr,
    C_batch, C_row: gl.constexpr, z_batch, z_row: gl.constexpr,
    segment_batch, segment_row: gl.constexpr,
    SOFTPLUS: gl.constexpr, REVERSE: gl.constexpr,
    N: gl.constexpr, NP: gl.constexpr, T: gl.constexpr, WIDE: gl.constexpr, PAIR: gl.constexpr,
    MASKED: gl.constexpr,
):  # fmt: skip
    """adjoints (batch, chunk, state, channels) of all chunks but the first, which has no left:
    sum_t exp(A (delta_first + .. + delta_t)) C_t dy_t. Walked forward in time, with the sum of
    steps so far, so that no step waits for another.
    """
    D: gl.constexpr = 32 * WIDE
    tiles: gl.constexpr = tile_layout(T, WIDE)
    by_d: gl.constexpr = row_layout(T, WIDE)
    by_t: gl.constexpr = step_layout(T, WIDE)
    blocks: gl.constexpr = (channels + D - 1) // D
    sign: gl.constexpr = -1 if REVERSE else 1
    program = gl.program_id(0)
    chunk = 1 + (program // blocks) % (chunks - 1)
    batch = (program // blocks // (chunks - 1)).to(gl.int64)
    first_d = (program % blocks) * D
    d = first_d + gl.arange(0, D, layout=by_d)
    t = gl.arange(0, T, layout=by_t)
    in_d = d < channels
    C_tile = gl.allocate_shared_memory(gl.float32, [NP, T], flat(2))
    C_rows = C_tile._reinterpret(gl.float32, [NP, T], flat(1))
    A2 = gl.allocate_shared_memory(gl.float32, [NP, D], flat(1))
    v_rows = gl.allocate_shared_memory(gl.float32, [NP, D], flat(1))
    load_by_channel(A2, A, first_d, LOG2E, channels, N, WIDE)
    load_by_channel(v_rows, None, first_d, 1.0, channels, N, WIDE)
    bias_D = load_channels(bias, d, in_d, by_d)
    total = gl.zeros([D], gl.float32, by_d)
    cut = gl.zeros([D], gl.float32, by_d)
    delta_own = delta + batch * delta_batch
    dout_own = dout + batch * dout_batch
    C_own = C + batch * C_batch
    z_own = dout_own
    if z is not None:
        z_own = z + batch * z_batch

    start = chunk * chunk_length
    steps = gl.minimum(chunk_length, length - start)
    at = position(start, length, REVERSE)
    inside = (t < steps)[:, None] & in_d[None, :]
    raw_delta = read_tile(delta_own + at * delta_row, sign * delta_row, t, d, inside, MASKED)
    raw_dout = read_tile(dout_own + at * dout_row, sign * dout_row, t, d, inside, MASKED)
    raw_z = raw_dout
    if z is not None:
        raw_z = read_tile(z_own + at * z_row, sign * z_row, t, d, inside, MASKED)
    raw_C = read_states(C_own + at * C_row, sign * C_row, steps, N, NP, T)
    for done in range(0, steps, T):
        step = step_of(raw_delta, bias_D, inside, SOFTPLUS, MASKED)
        dy = raw_dout.to(gl.float32)
        if z is not None:
            z_tile = raw_z.to(gl.float32)
            dy *= z_tile * sigmoid(z_tile)
        C_tile.store(raw_C.to(gl.float32))
        sum_tile, total = running_sums(step, total, by_d)
        if segments is not None:
            at = position(start + done, length, REVERSE)
            penalty = penalties(
                segments + batch * segment_batch + at * segment_row, sign * segment_row,
                start + done, steps - done, T, WIDE,
            )  # fmt: skip
            spread = gl.zeros([T, D], gl.float32, tiles) + penalty[:, None]
            cut_tile, cut = running_sums(spread, cut, by_d)
        following = gl.minimum(done + T, (steps - 1) // T * T)
        at = position(start + following, length, REVERSE)
        inside = (t < steps - following)[:, None] & in_d[None, :]
        raw_delta = read_tile(delta_own + at * delta_row, sign * delta_row, t, d, inside, MASKED)
        raw_dout = read_tile(dout_own + at * dout_row, sign * dout_row, t, d, inside, MASKED)
        raw_z = raw_dout
        if z is not None:
            raw_z = read_tile(z_own + at * z_row, sign * z_row, t, d, inside, MASKED)
        raw_C = read_states(C_own + at * C_row, sign * C_row, steps - following, N, NP, T)
        gl.thread_barrier()
        for pair in range(N // PAIR):
            before = load_rows(v_rows, pair, PAIR, T, WIDE)
            after = ()
            for k in gl.static_range(PAIR):
                n = pair * PAIR + k
                exponent = sum_tile * A2.index(n).load(by_d)[None, :]
                if segments is not None:
                    exponent += cut_tile
                weighted = gl.exp2(exponent) * (dy * C_rows.index(n).load(by_t)[:, None])
                after = after + (before[k] + gl.sum(weighted, 0),)  # noqa: RUF005
            store_rows(v_rows, pair, after, WIDE)
        gl.thread_barrier()
    out = adjoints + (batch * chunks + chunk) * N * channels
    store_by_state(out, v_rows, first_d, channels, N, WIDE)
