"""The scan's forward pass, tuned: the same passes and memory as in `triton_plain_forward`.

The exponential is the bound: 16 a clock and multiprocessor, so 8 cycles a warp. Around it stand,
for each (batch, step, channel), two special functions for softplus and two for the gate.
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
    load_tile,
    penalties,
    read_states,
    read_tile,
    row_layout,
    rows,
    sigmoid,
    step_layout,
    store_rows,
    store_tile,
    tile_layout,
    tile_of,
)
from mambakernels.scan.triton_tuned_walk import (
    load_by_channel,
    load_by_state,
    load_channels,
    position,
    step_of,
    store_by_state,
    walk_states,
)


@gluon.jit(do_not_specialize=SIZES)
def summarise(
    u, delta, A, B, bias, segments, summaries,
    length, channels: gl.constexpr, chunks, chunk_length, count,
    u_batch, u_row: gl.constexpr, delta_batch, delta_row: gl.constexpr,
    B_batch, B_row: gl.constexpr, segment_batch, segment_row: gl.constexpr,
    SOFTPLUS: gl.constexpr, REVERSE: gl.constexpr,
    N: gl.constexpr, NP: gl.constexpr, T: gl.constexpr, WIDE: gl.constexpr, PAIR: gl.constexpr,
    MASKED: gl.constexpr,
):  # fmt: skip
    """Of the first `count` chunks: the state each makes from zero, and the sum of its steps."""
    D: gl.constexpr = 32 * WIDE
    by_d: gl.constexpr = row_layout(T, WIDE)
    blocks: gl.constexpr = (channels + D - 1) // D
    program = gl.program_id(0)
    chunk = (program // blocks) % count
    batch = (program // blocks // count).to(gl.int64)
    first_d = (program % blocks) * D
    d = first_d + gl.arange(0, D, layout=by_d)
    in_d = d < channels
    B_tile = gl.allocate_shared_memory(gl.float32, [NP, T], flat(2))
    A2 = gl.allocate_shared_memory(gl.float32, [NP, D], flat(1))
    h_rows = gl.allocate_shared_memory(gl.float32, [NP, D], flat(1))
    load_by_channel(A2, A, first_d, LOG2E, channels, N, WIDE)
    load_by_channel(h_rows, None, first_d, 1.0, channels, N, WIDE)
    bias_D = load_channels(bias, d, in_d, by_d)
    segments_own = segments
    if segments is not None:
        segments_own = segments + batch * segment_batch
    start = chunk * chunk_length
    total = walk_states(
        u + batch * u_batch, delta + batch * delta_batch, B + batch * B_batch, segments_own,
        A2, h_rows, B_tile, None, bias_D, first_d, start, gl.minimum(chunk_length, length - start),
        length, channels, u_row, delta_row, B_row, segment_row,
        SOFTPLUS, REVERSE, N, T, WIDE, PAIR, MASKED,
    )  # fmt: skip
    out = summaries + (batch * chunks + chunk) * (N + 1) * channels
    store_by_state(out, h_rows, first_d, channels, N, WIDE)
    gl.store(out + N * channels + d, total, mask=in_d)


@gluon.jit(do_not_specialize=SIZES)
def scan_outputs(
    u, delta, A, B, C, D_skip, z, bias, initial, segments, starts, out, final,
    length, channels: gl.constexpr, chunks, chunk_length,
    u_batch, u_row: gl.constexpr, delta_batch, delta_row: gl.constexpr,
    B_batch, B_row: gl.constexpr, C_batch, C_row: gl.constexpr, z_batch, z_row: gl.constexpr,
    segment_batch, segment_row: gl.constexpr,
    SOFTPLUS: gl.constexpr, REVERSE: gl.constexpr, WHOLE: gl.constexpr,
    N: gl.constexpr, NP: gl.constexpr, T: gl.constexpr, WIDE: gl.constexpr, PAIR: gl.constexpr,
    MASKED: gl.constexpr,
):  # fmt: skip
    """out, the final state, and the last chunk's sum of steps into starts.

    A program walks one chunk from its start state; or, with WHOLE, all chunks from the initial
    state, and writes starts (unless None) instead of reading it.
    """
    D: gl.constexpr = 32 * WIDE
    tiles: gl.constexpr = tile_layout(T, WIDE)
    by_d: gl.constexpr = row_layout(T, WIDE)
    by_t: gl.constexpr = step_layout(T, WIDE)
    blocks: gl.constexpr = (channels + D - 1) // D
    sign: gl.constexpr = -1 if REVERSE else 1
    program = gl.program_id(0)
    if WHOLE:
        first_chunk = program * 0
        last_chunk = chunks
        batch = (program // blocks).to(gl.int64)
    else:
        first_chunk = (program // blocks) % chunks
        last_chunk = first_chunk + 1
        batch = (program // blocks // chunks).to(gl.int64)
    first_d = (program % blocks) * D
    d = first_d + gl.arange(0, D, layout=by_d)
    t = gl.arange(0, T, layout=by_t)
    in_d = d < channels
    B_tile = gl.allocate_shared_memory(gl.float32, [NP, T], flat(2))
    C_tile = gl.allocate_shared_memory(gl.float32, [NP, T], flat(2))
    B_rows = B_tile._reinterpret(gl.float32, [NP, T], flat(1))
    C_rows = C_tile._reinterpret(gl.float32, [NP, T], flat(1))
    A2 = gl.allocate_shared_memory(gl.float32, [NP, D], flat(1))
    h_rows = gl.allocate_shared_memory(gl.float32, [NP, D], flat(1))
    load_by_channel(A2, A, first_d, LOG2E, channels, N, WIDE)
    if WHOLE:
        own_initial = initial
        if initial is not None:
            own_initial = initial + batch * channels * N
        load_by_channel(h_rows, own_initial, first_d, 1.0, channels, N, WIDE)
    else:
        edges = starts + (batch * chunks + first_chunk) * (N + 1) * channels
        load_by_state(h_rows, edges, first_d, channels, N, WIDE)
    bias_D = load_channels(bias, d, in_d, by_d)
    skip_D = load_channels(D_skip, d, in_d, by_d)
    u_own = u + batch * u_batch
    delta_own = delta + batch * delta_batch
    B_own = B + batch * B_batch
    C_own = C + batch * C_batch

    for chunk in range(first_chunk, last_chunk):
        start = chunk * chunk_length
        steps = gl.minimum(chunk_length, length - start)
        own_chunk = (batch * chunks + chunk) * (N + 1) * channels
        if WHOLE:  # noqa: SIM102
            if starts is not None:
                store_by_state(starts + own_chunk, h_rows, first_d, channels, N, WIDE)
        total = gl.zeros([D], gl.float32, by_d)
        at = position(start, length, REVERSE)
        inside = (t < steps)[:, None] & in_d[None, :]
        raw_delta = read_tile(delta_own + at * delta_row, sign * delta_row, t, d, inside, MASKED)
        raw_u = read_tile(u_own + at * u_row, sign * u_row, t, d, inside, MASKED)
        raw_B = read_states(B_own + at * B_row, sign * B_row, steps, N, NP, T)
        raw_C = read_states(C_own + at * C_row, sign * C_row, steps, N, NP, T)
        for done in range(0, steps, T):
            at = position(start + done, length, REVERSE)
            inside = (t < steps - done)[:, None] & in_d[None, :]
            step = step_of(raw_delta, bias_D, inside, SOFTPLUS, MASKED)
            u_tile = raw_u.to(gl.float32)
            taken_in = step * u_tile
            y = skip_D[None, :] * u_tile
            B_tile.store(raw_B.to(gl.float32))
            C_tile.store(raw_C.to(gl.float32))
            if segments is not None:
                penalty = penalties(
                    segments + batch * segment_batch + at * segment_row, sign * segment_row,
                    start + done, steps - done, T, WIDE,
                )[:, None]  # fmt: skip
                total += gl.sum(gl.where(penalty < 0.0, float("inf"), step), 0)
            else:
                total += gl.sum(step, 0)
            following = gl.minimum(done + T, (steps - 1) // T * T)
            row = position(start + following, length, REVERSE)
            inside_next = (t < steps - following)[:, None] & in_d[None, :]
            raw_delta = read_tile(
                delta_own + row * delta_row, sign * delta_row, t, d, inside_next, MASKED
            )
            raw_u = read_tile(u_own + row * u_row, sign * u_row, t, d, inside_next, MASKED)
            raw_B = read_states(B_own + row * B_row, sign * B_row, steps - following, N, NP, T)
            raw_C = read_states(C_own + row * C_row, sign * C_row, steps - following, N, NP, T)
            gl.thread_barrier()
            for pair in range(N // PAIR):
                before = load_rows(h_rows, pair, PAIR, T, WIDE)
                after = ()
                for k in gl.static_range(PAIR):
                    n = pair * PAIR + k
                    exponent = step * A2.index(n).load(by_d)[None, :]
                    if segments is not None:
                        exponent += penalty
                    a = rows(gl.exp2(exponent))
                    x = rows(taken_in * B_rows.index(n).load(by_t)[:, None])
                    h = as_row(before[k], a[0])
                    states = ()
                    for i in gl.static_range(T):
                        h = a[i] * h + x[i]
                        states = states + (h,)  # noqa: RUF005
                    after = after + (as_channels(h, by_d),)  # noqa: RUF005
                    h_tile = gl.convert_layout(tile_of(states), tiles, assert_trivial=True)
                    y += h_tile * C_rows.index(n).load(by_t)[:, None]
                store_rows(h_rows, pair, after, WIDE)
            if z is not None:
                z_tile = load_tile(
                    z + batch * z_batch + at * z_row, sign * z_row, t, d, inside, MASKED
                )
                y *= z_tile * sigmoid(z_tile)
            store_tile(
                out + (batch * length + at) * channels, sign * channels, t, d, inside, y, MASKED
            )
            gl.thread_barrier()
        if starts is not None:
            ours = in_d
            if not WHOLE:
                ours = in_d & (chunk == chunks - 1)
            gl.store(starts + own_chunk + N * channels + d, total, mask=ours)
    at_end = in_d & (last_chunk == chunks)
    for n in range(N):
        h_D = h_rows.index(n).load(by_d)
        gl.store(final + (batch * channels + d) * N + n, h_D, mask=at_end)
