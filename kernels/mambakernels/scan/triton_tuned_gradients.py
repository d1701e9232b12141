"""The tuned backward pass's last kernel: all gradients, chunk by chunk.

`scan_gradients` recomputes the states of a chunk tile after tile: a first walk leaves the state at
every tile's start in a scratch memory, then the tiles come in reverse order, each one walked
forward and back for PAIR states of the model after the other. All of a tile's decays and states
stay in registers between the two walks. A tile's inputs are read while the tile before it is
finished, and wait in shared memory for the tile's own end, which needs them again.

dB and dC are sums over channels, which lie across threads: tiles of products are turned in shared
memory so that each thread sums a run of channels. A program's sums, over its GROUP blocks of
channels, go to `partials`; `add_up` (in `triton_sums`) adds those of all programs
in a fixed order.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mambakernels.scan.triton_tuned_tiles import (
    LN2,
    LOG2E,
    SIZES,
    as_channels,
    as_row,
    fetch_ahead,
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


@gluon.jit
def walk_both_ways(
    h_D, v_D, dA_D, A_D, B_T, C_T, step, taken_in, dy, penalty, y, dtaken, dexponent,
    FOUND: gl.constexpr, T: gl.constexpr, WIDE: gl.constexpr,
):  # fmt: skip
    """One state through a tile, forward from h_D and back from v_D.

    Returns v_D before the tile, and dA_D, y, dtaken (by delta u), dexponent (by delta A log2 e),
    each with this state's part added, and each thread's parts (T, 32) of dB and dC.
    """
    tiles: gl.constexpr = tile_layout(T, WIDE)
    by_d: gl.constexpr = row_layout(T, WIDE)
    A_row = A_D[None, :]
    B_column = B_T[:, None]
    C_column = C_T[:, None]
    exponent = step * A_row
    if penalty is not None:
        exponent += penalty
    a = rows(gl.exp2(exponent))
    x = rows(taken_in * B_column)
    h = as_row(h_D, a[0])
    kept = ()
    states = ()
    for i in gl.static_range(T):
        h = a[i] * h
        kept = kept + (h,)  # noqa: RUF005
        h = h + x[i]
        states = states + (h,)  # noqa: RUF005
    h_tile = gl.convert_layout(tile_of(states), tiles, assert_trivial=True)
    if FOUND:
        y += h_tile * C_column
    driven = rows(dy * C_column)
    v = as_row(v_D, a[0])
    gs = ()
    for i in gl.static_range(T):
        g = v + driven[T - 1 - i]
        gs = (g,) + gs  # noqa: RUF005
        v = a[T - 1 - i] * g
    g_tile = gl.convert_layout(tile_of(gs), tiles, assert_trivial=True)
    dtaken += g_tile * B_column
    by_exponent = g_tile * gl.convert_layout(tile_of(kept), tiles, assert_trivial=True)
    dexponent += by_exponent * A_row
    dA_D += gl.sum(by_exponent * step, 0)
    by_B = g_tile * taken_in
    by_C = h_tile * dy
    if WIDE > 1:
        by_B = gl.sum(gl.reshape(by_B, [T, 32, WIDE]), 2)
        by_C = gl.sum(gl.reshape(by_C, [T, 32, WIDE]), 2)
    return as_channels(v, by_d), dA_D, y, dtaken, dexponent, by_B, by_C


@gluon.jit
def read_pair(base, stride, PAIR: gl.constexpr):
    found = ()
    for i in gl.static_range(PAIR):
        found = found + (gl.load(base + i * stride),)  # noqa: RUF005
    return found


@gluon.constexpr_function
def turned(count):
    """(count, 32 channels) with a run of channels in each thread."""
    across = min(32, count)
    return gl.BlockedLayout([1, across], [across, 32 // across], [1, 1], [1, 0])


@gluon.jit
def sum_channels(parts):
    """The sums over channels of tiles (T, 32), one tile after the other."""
    both = tile_of(parts)
    return gl.sum(gl.convert_layout(both, turned(both.shape[0])), 1)


@gluon.jit(do_not_specialize=SIZES)
def scan_gradients(
    dout, dfinal, adjoints, starts, u, delta, A, B, C, D_skip, z, bias, initial, segments,
    du, ddelta, dz, out, partials, sums, dinitial, scratch,
    items, programs, length, channels: gl.constexpr, chunks, chunk_length,
    dout_batch, dout_row: gl.constexpr, u_batch, u_row: gl.constexpr,
    delta_batch, delta_row: gl.constexpr, B_batch, B_row: gl.constexpr,
    C_batch, C_row: gl.constexpr, z_batch, z_row: gl.constexpr,
    segment_batch, segment_row: gl.constexpr,
    SOFTPLUS: gl.constexpr, REVERSE: gl.constexpr, GROUP: gl.constexpr,
    N: gl.constexpr, NP: gl.constexpr, T: gl.constexpr, WIDE: gl.constexpr, PAIR: gl.constexpr,
    MASKED: gl.constexpr,
):  # fmt: skip
    """partials (groups, batch, length, 2, state): dB and dC of each group of blocks of channels.
    sums (batch, chunk, state + 2, channels): dA, dD and the bias's of each chunk. out: the forward
    pass's, found on the way, or None.

    A program takes every `programs`-th item of batch x chunks x groups. Its scratch (tiles, N, D)
    holds the states at the tiles' starts, each read by the thread that wrote it. PAIR divides N.
    """
    D: gl.constexpr = 32 * WIDE
    tiles: gl.constexpr = tile_layout(T, WIDE)
    by_d: gl.constexpr = row_layout(T, WIDE)
    by_t: gl.constexpr = step_layout(T, WIDE)
    groups: gl.constexpr = (channels + D * GROUP - 1) // (D * GROUP)
    sign: gl.constexpr = -1 if REVERSE else 1
    GATED: gl.constexpr = z is not None
    FOUND: gl.constexpr = GATED or out is not None  # the outputs are wanted
    program = gl.program_id(0)
    t = gl.arange(0, T, layout=by_t)
    B_tile = gl.allocate_shared_memory(gl.float32, [NP, T], flat(2))
    C_tile = gl.allocate_shared_memory(gl.float32, [NP, T], flat(2))
    B_rows = B_tile._reinterpret(gl.float32, [NP, T], flat(1))
    C_rows = C_tile._reinterpret(gl.float32, [NP, T], flat(1))
    A2 = gl.allocate_shared_memory(gl.float32, [NP, D], flat(1))
    v_rows = gl.allocate_shared_memory(gl.float32, [NP, D], flat(1))
    dA_rows = gl.allocate_shared_memory(gl.float32, [NP, D], flat(1))
    sum_tile = gl.allocate_shared_memory(gl.float32, [NP, 2 * T], flat(2))
    sum_rows = sum_tile._reinterpret(gl.float32, [NP // PAIR, PAIR * 2 * T], flat(1))
    u_kept = gl.allocate_shared_memory(u.dtype.element_ty, [T, D], flat(2))
    delta_kept = gl.allocate_shared_memory(delta.dtype.element_ty, [T, D], flat(2))
    dout_kept = gl.allocate_shared_memory(dout.dtype.element_ty, [T, D], flat(2))
    if GATED:
        z_kept = gl.allocate_shared_memory(z.dtype.element_ty, [T, D], flat(2))
    lane = gl.arange(0, D, layout=by_d)
    own = scratch + program.to(gl.int64) * (chunk_length // T * N * D)
    out_layout: gl.constexpr = gl.BlockedLayout([1, 1], [32, 1], [1, 1], [0, 1])
    out_n = gl.arange(0, NP, layout=gl.SliceLayout(1, out_layout))
    out_t = gl.arange(0, 2 * T, layout=gl.SliceLayout(0, out_layout))

    for work in range(program * GROUP, items * GROUP, programs * GROUP):
        for member in range(GROUP):
            item = work // GROUP
            group = item % groups
            chunk = (item // groups) % chunks
            batch = (item // groups // chunks).to(gl.int64)
            first_d = (group * GROUP + member) * D
            d = first_d + lane
            in_d = d < channels
            start = chunk * chunk_length
            steps = gl.minimum(chunk_length, length - start)
            at_chunk = (batch * chunks + chunk) * channels
            bias_D = load_channels(bias, d, in_d, by_d)
            skip_D = load_channels(D_skip, d, in_d, by_d)[None, :]
            own_initial = initial
            if initial is not None:
                own_initial = initial + batch * channels * N
            own_final = dfinal
            if dfinal is not None:
                own_final = dfinal + batch * channels * N
            load_by_channel(A2, A, first_d, LOG2E, channels, N, WIDE)
            load_by_channel(dA_rows, None, first_d, 1.0, channels, N, WIDE)
            if starts is not None:
                load_by_state(v_rows, starts + at_chunk * (N + 1), first_d, channels, N, WIDE)
            else:
                load_by_channel(v_rows, own_initial, first_d, 1.0, channels, N, WIDE)
            u_own = u + batch * u_batch
            delta_own = delta + batch * delta_batch
            dout_own = dout + batch * dout_batch
            B_own = B + batch * B_batch
            C_own = C + batch * C_batch
            z_own = dout_own
            if GATED:
                z_own = z + batch * z_batch
            segments_own = segments
            if segments is not None:
                segments_own = segments + batch * segment_batch
            last = (steps - 1) // T * T
            walk_states(
                u_own, delta_own, B_own, segments_own, A2, v_rows, B_tile, own, bias_D, first_d,
                start, last, length, channels, u_row, delta_row, B_row, segment_row,
                SOFTPLUS, REVERSE, N, T, WIDE, PAIR, MASKED,
            )  # fmt: skip
            for n in range(N):
                gl.store(own + (last // T * N + n) * D + lane, v_rows.index(n).load(by_d))
            if adjoints is not None:
                load_by_state(v_rows, adjoints + at_chunk * N, first_d, channels, N, WIDE)
            else:
                load_by_channel(v_rows, own_final, first_d, 1.0, channels, N, WIDE)

            dskip = gl.zeros([D], gl.float32, by_d)
            dbias = gl.zeros([D], gl.float32, by_d)
            at = position(start + last, length, REVERSE)
            left = steps - last
            inside = (t < left)[:, None] & in_d[None, :]
            raw_u = read_tile(u_own + at * u_row, sign * u_row, t, d, inside, MASKED)
            raw_delta = read_tile(
                delta_own + at * delta_row, sign * delta_row, t, d, inside, MASKED
            )
            raw_dout = read_tile(dout_own + at * dout_row, sign * dout_row, t, d, inside, MASKED)
            raw_z = raw_dout
            if GATED:
                raw_z = read_tile(z_own + at * z_row, sign * z_row, t, d, inside, MASKED)
            raw_B = read_states(B_own + at * B_row, sign * B_row, left, N, NP, T)
            raw_C = read_states(C_own + at * C_row, sign * C_row, left, N, NP, T)
            first_h = read_pair(own + last // T * (N * D) + lane, D, PAIR)
            for back in range(0, last + T, T):
                done = last - back
                at = position(start + done, length, REVERSE)
                left = steps - done
                inside = (t < left)[:, None] & in_d[None, :]
                step = step_of(raw_delta, bias_D, inside, SOFTPLUS, MASKED)
                taken_in = step * raw_u.to(gl.float32)
                dy = raw_dout.to(gl.float32)
                u_kept.store(raw_u)
                delta_kept.store(raw_delta)
                dout_kept.store(raw_dout)
                y = taken_in
                if GATED:
                    z_tile = raw_z.to(gl.float32)
                    dy *= z_tile * sigmoid(z_tile)
                    z_kept.store(raw_z)
                if FOUND:
                    y = gl.zeros([T, D], gl.float32, tiles)
                B_tile.store(raw_B.to(gl.float32))
                C_tile.store(raw_C.to(gl.float32))
                penalty = segments
                if segments is not None:
                    penalty = penalties(
                        segments_own + at * segment_row, sign * segment_row, start + done, left,
                        T, WIDE,
                    )[:, None]  # fmt: skip
                gl.thread_barrier()

                dtaken = gl.zeros([T, D], gl.float32, tiles)
                dexponent = gl.zeros([T, D], gl.float32, tiles)
                at_tile = own + done // T * (N * D) + lane
                before = gl.maximum(done - T, 0)
                fetch_ahead(own + before // T * (N * D), D, N, N, D)
                next_h = first_h
                for pair in range(N // PAIR):
                    n = pair * PAIR
                    following = at_tile + gl.minimum(n + PAIR, N - PAIR) * D
                    h_pair = next_h
                    next_h = read_pair(following, D, PAIR)
                    v_pair = load_rows(v_rows, pair, PAIR, T, WIDE)
                    dA_pair = load_rows(dA_rows, pair, PAIR, T, WIDE)
                    v_after = ()
                    dA_after = ()
                    parts = ()
                    for i in gl.static_range(PAIR):
                        v_D, dA_D, y, dtaken, dexponent, by_B, by_C = walk_both_ways(
                            h_pair[i], v_pair[i], dA_pair[i], A2.index(n + i).load(by_d),
                            B_rows.index(n + i).load(by_t), C_rows.index(n + i).load(by_t),
                            step, taken_in, dy, penalty, y, dtaken, dexponent, FOUND, T, WIDE,
                        )  # fmt: skip
                        parts = parts + (by_B, by_C)  # noqa: RUF005
                        v_after = v_after + (v_D,)  # noqa: RUF005
                        dA_after = dA_after + (dA_D,)  # noqa: RUF005
                    sum_rows.index(pair).store(sum_channels(parts))
                    store_rows(v_rows, pair, v_after, WIDE)
                    store_rows(dA_rows, pair, dA_after, WIDE)
                gl.thread_barrier()

                first_h = read_pair(own + before // T * (N * D) + lane, D, PAIR)
                row = position(start + before, length, REVERSE)
                inside_next = (t < steps - before)[:, None] & in_d[None, :]
                raw_u = read_tile(u_own + row * u_row, sign * u_row, t, d, inside_next, MASKED)
                raw_delta = read_tile(
                    delta_own + row * delta_row, sign * delta_row, t, d, inside_next, MASKED
                )
                raw_dout = read_tile(
                    dout_own + row * dout_row, sign * dout_row, t, d, inside_next, MASKED
                )
                raw_z = raw_dout
                if GATED:
                    raw_z = read_tile(z_own + row * z_row, sign * z_row, t, d, inside_next, MASKED)
                raw_B = read_states(B_own + row * B_row, sign * B_row, steps - before, N, NP, T)
                raw_C = read_states(C_own + row * C_row, sign * C_row, steps - before, N, NP, T)

                u_tile = u_kept.load(tiles).to(gl.float32)
                dstep = dtaken * u_tile + dexponent * LN2
                if SOFTPLUS:
                    dstep *= sigmoid(delta_kept.load(tiles).to(gl.float32) + bias_D[None, :])
                if MASKED:
                    dstep = gl.where(inside, dstep, 0.0)
                du_tile = dtaken * step
                dskip += gl.sum(dy * u_tile, 0)
                dbias += gl.sum(dstep, 0)
                out_at = (batch * length + at) * channels
                du_tile += dy * skip_D
                store_tile(du + out_at, sign * channels, t, d, inside, du_tile, MASKED)
                store_tile(ddelta + out_at, sign * channels, t, d, inside, dstep, MASKED)
                if FOUND:
                    y += u_tile * skip_D
                if GATED:
                    z_tile = z_kept.load(tiles).to(gl.float32)
                    gate = sigmoid(z_tile)
                    dz_tile = dout_kept.load(tiles).to(gl.float32) * y
                    dz_tile *= gate * (1.0 + z_tile * (1.0 - gate))
                    store_tile(dz + out_at, sign * channels, t, d, inside, dz_tile, MASKED)
                    y *= z_tile * gate
                if out is not None:
                    store_tile(out + out_at, sign * channels, t, d, inside, y, MASKED)

                batches = items // groups // chunks
                found = sum_tile.load(out_layout)
                out_step = out_t % T
                target = partials + ((group * batches + batch) * length + at) * (2 * N)
                target += (out_step * (sign * 2 * N) + out_t // T * N)[None, :] + out_n[:, None]
                kept_there = (out_n < N)[:, None] & (out_step < left)[None, :]
                if GROUP > 1:
                    found += gl.load(target, mask=kept_there & (member > 0), other=0.0)
                gl.store(target, found, mask=kept_there)
                gl.thread_barrier()

            to_sums = sums + at_chunk * (N + 2)
            store_by_state(to_sums, dA_rows, first_d, channels, N, WIDE)
            gl.store(to_sums + N * channels + d, dskip, mask=in_d)
            gl.store(to_sums + (N + 1) * channels + d, dbias, mask=in_d)
            if dinitial is not None:
                for n in range(N):
                    into = dinitial + (batch * channels + d) * N + n
                    gl.store(into, v_rows.index(n).load(by_d), mask=in_d & (chunk == 0))
            gl.thread_barrier()
