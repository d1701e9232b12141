"""The scan's backward pass, tuned: the same passes and memory as in `triton_plain_backward`.

`scan_gradients` recomputes the states of a chunk tile after tile: a first walk leaves the state at
every tile's start in a scratch memory, then the tiles come in reverse order, each one walked
forward and back for one state of the model after the other. All of a tile's decays and states stay
in registers between the two walks, so three exponentials are spent on each (batch, step, channel,
state) in the whole backward pass, with `summarise_adjoints`.

dB and dC are sums over channels, which lie across threads: a tile of products is turned in shared
memory so that each thread sums a run of channels. A program's sums, over its `GROUP` blocks of
channels, go to `partials`; `add_partials` (in `triton_plain_backward`) adds those of all programs
in a fixed order.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mambakernels.scan.triton_tuned_forward import position, step_tile
from mambakernels.scan.triton_tuned_tiles import (
    LN2,
    LOG2E,
    as_channels,
    as_row,
    fetch_ahead,
    flat,
    load_states,
    load_tile,
    penalties,
    row_layout,
    rows,
    sigmoid,
    step_layout,
    store_tile,
    tile_layout,
    tile_of,
)


@gluon.jit
def summarise_adjoints(
    dout, delta, A, C, z, bias, segments, adjoints,
    length, channels: gl.constexpr, chunks, chunk_length,
    dout_batch, dout_row: gl.constexpr, delta_batch, delta_row: gl.constexpr,
    C_batch, C_row: gl.constexpr, z_batch, z_row: gl.constexpr,
    segment_batch, segment_row: gl.constexpr,
    SOFTPLUS: gl.constexpr, REVERSE: gl.constexpr,
    N: gl.constexpr, NP: gl.constexpr, T: gl.constexpr, WIDE: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """adjoints (batch, chunk, state, channels) = sum_t exp(A (delta_first + .. + delta_t)) C_t dy_t.

    Walked forward in time, with the sum of steps so far, so that no step waits for another.
    """
    D: gl.constexpr = 32 * WIDE
    tiles: gl.constexpr = tile_layout(T, WIDE)
    by_d: gl.constexpr = row_layout(T, WIDE)
    by_t: gl.constexpr = step_layout(T, WIDE)
    blocks: gl.constexpr = (channels + D - 1) // D
    program = gl.program_id(0)
    chunk = (program // blocks) % chunks
    batch = (program // blocks // chunks).to(gl.int64)
    d = (program % blocks) * D + gl.arange(0, D, layout=by_d)
    t = gl.arange(0, T, layout=by_t)
    in_d = d < channels
    C_tile = gl.allocate_shared_memory(gl.float32, [NP, T], flat(2))
    C_rows = C_tile._reinterpret(gl.float32, [NP, T], flat(1))
    A2 = gl.allocate_shared_memory(gl.float32, [NP, D], flat(1))
    v_rows = gl.allocate_shared_memory(gl.float32, [NP, D], flat(1))
    for n in range(N):
        A2.index(n).store(gl.load(A + d * N + n, mask=in_d, other=0.0) * LOG2E)
        v_rows.index(n).store(gl.zeros([D], gl.float32, by_d))
    if bias is not None:
        bias_D = gl.load(bias + d, mask=in_d, other=0.0)
    else:
        bias_D = gl.zeros([D], gl.float32, by_d)
    total = gl.zeros([D], gl.float32, by_d)
    cut = gl.zeros([D], gl.float32, by_d)

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
        dy = load_tile(
            dout + batch * dout_batch + at * dout_row, sign * dout_row, t, d, inside, MASKED
        )
        if z is not None:
            z_tile = load_tile(z + batch * z_batch + at * z_row, sign * z_row, t, d, inside, MASKED)
            dy *= z_tile * sigmoid(z_tile)
        load_states(C_tile, C + batch * C_batch + at * C_row, sign * C_row, left, N)
        sums = ()
        single = rows(step)
        so_far = as_row(total, single[0])
        for i in gl.static_range(T):
            so_far += single[i]
            sums = sums + (so_far,)  # noqa: RUF005
        total = as_channels(so_far, by_d)
        sum_tile = gl.convert_layout(tile_of(sums), tiles, assert_trivial=True)
        if segments is not None:
            penalty = penalties(
                segments + batch * segment_batch + at * segment_row, sign * segment_row,
                start + done, left, T, WIDE,
            )  # fmt: skip
            cuts = ()
            single = rows(gl.zeros([T, D], gl.float32, tiles) + penalty[:, None])
            so_far = as_row(cut, single[0])
            for i in gl.static_range(T):
                so_far += single[i]
                cuts = cuts + (so_far,)  # noqa: RUF005
            cut = as_channels(so_far, by_d)
            cut_tile = gl.convert_layout(tile_of(cuts), tiles, assert_trivial=True)
        gl.thread_barrier()
        for n in range(N):
            exponent = sum_tile * A2.index(n).load(by_d)[None, :]
            if segments is not None:
                exponent += cut_tile
            weighted = gl.exp2(exponent) * (dy * C_rows.index(n).load(by_t)[:, None])
            v_rows.index(n).store(v_rows.index(n).load(by_d) + gl.sum(weighted, 0))
        gl.thread_barrier()
    out = adjoints + (batch * chunks + chunk) * N * channels
    for n in range(N):
        gl.store(out + n * channels + d, v_rows.index(n).load(by_d), mask=in_d)


@gluon.constexpr_function
def turned(steps):
    """(2 steps, 32 channels) with a run of channels in each thread."""
    across = min(32, 2 * steps)
    return gl.BlockedLayout([1, across], [across, 32 // across], [1, 1], [1, 0])


@gluon.jit
def sum_channels(first, second, WIDE: gl.constexpr):
    """The sums over channels of two tiles (T, D), one after the other, (2 T,)."""
    T: gl.constexpr = first.shape[0]
    if WIDE > 1:
        first = gl.sum(gl.reshape(first, [T, 32, WIDE]), 2)
        second = gl.sum(gl.reshape(second, [T, 32, WIDE]), 2)
    both = gl.reshape(gl.permute(gl.join(first, second), (2, 0, 1)), [2 * T, 32])
    return gl.sum(gl.convert_layout(both, turned(T)), 1)


@gluon.jit
def walk_to_tile_starts(
    u, delta, B, segments, A2, h_rows, B_tile, scratch, bias_D, first_d, start, steps, length, channels: gl.constexpr,
    u_row: gl.constexpr, delta_row: gl.constexpr, B_row: gl.constexpr, segment_row: gl.constexpr,
    SOFTPLUS: gl.constexpr, REVERSE: gl.constexpr,
    N: gl.constexpr, T: gl.constexpr, WIDE: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """scratch (tiles, N, D): the states at the tiles' starts; h_rows holds the first one's."""
    D: gl.constexpr = 32 * WIDE
    NP: gl.constexpr = B_tile.shape[0]
    by_d: gl.constexpr = row_layout(T, WIDE)
    by_t: gl.constexpr = step_layout(T, WIDE)
    sign: gl.constexpr = -1 if REVERSE else 1
    B_rows = B_tile._reinterpret(gl.float32, [NP, T], flat(1))
    t = gl.arange(0, T, layout=by_t)
    row = scratch + gl.arange(0, D, layout=by_d)
    d = first_d + gl.arange(0, D, layout=by_d)
    inside = (t < T)[:, None] & (d < channels)[None, :]
    last = (steps - 1) // T * T
    for done in range(0, last, T):
        at = position(start + done, length, REVERSE)
        step = step_tile(
            delta + at * delta_row, sign * delta_row, t, d, inside, bias_D, SOFTPLUS, MASKED
        )
        taken_in = step * load_tile(u + at * u_row, sign * u_row, t, d, inside, MASKED)
        load_states(B_tile, B + at * B_row, sign * B_row, T, N)
        if segments is not None:
            penalty = penalties(
                segments + at * segment_row, sign * segment_row, start + done, T, T, WIDE
            )[:, None]
        following = position(start + done + T, length, REVERSE)
        fetch_ahead(delta + first_d + following * delta_row, sign * delta_row, steps - done - T, T, D)
        fetch_ahead(u + first_d + following * u_row, sign * u_row, steps - done - T, T, D)
        gl.thread_barrier()
        for n in range(N):
            exponent = step * A2.index(n).load(by_d)[None, :]
            if segments is not None:
                exponent += penalty
            a = rows(gl.exp2(exponent))
            x = rows(taken_in * B_rows.index(n).load(by_t)[:, None])
            h_D = h_rows.index(n).load(by_d)
            gl.store(row + n * D, h_D)
            h = as_row(h_D, a[0])
            for i in gl.static_range(T):
                h = a[i] * h + x[i]
            h_rows.index(n).store(as_channels(h, by_d))
        row += N * D
        gl.thread_barrier()
    for n in range(N):
        gl.store(row + n * D, h_rows.index(n).load(by_d))


@gluon.jit
def scan_gradients(
    dout, dfinal, adjoints, starts, u, delta, A, B, C, D_skip, z, bias, initial, segments,
    du, ddelta, dz, partials, sums, dinitial, scratch,
    items, programs, length, channels: gl.constexpr, chunks, chunk_length,
    dout_batch, dout_row: gl.constexpr, u_batch, u_row: gl.constexpr,
    delta_batch, delta_row: gl.constexpr, B_batch, B_row: gl.constexpr,
    C_batch, C_row: gl.constexpr, z_batch, z_row: gl.constexpr,
    segment_batch, segment_row: gl.constexpr,
    SOFTPLUS: gl.constexpr, REVERSE: gl.constexpr, GROUP: gl.constexpr,
    N: gl.constexpr, NP: gl.constexpr, T: gl.constexpr, WIDE: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """partials (groups, batch, length, 2, state): dB and dC of each group of blocks of channels.
    sums (batch, chunk, state + 2, channels): dA, dD and the bias's of each chunk.

    A program takes every `programs`-th item of batch x chunks x groups. Its scratch (tiles, N, D)
    holds the states at the tiles' starts, each read by the thread that wrote it.
    """
    D: gl.constexpr = 32 * WIDE
    tiles: gl.constexpr = tile_layout(T, WIDE)
    by_d: gl.constexpr = row_layout(T, WIDE)
    by_t: gl.constexpr = step_layout(T, WIDE)
    groups: gl.constexpr = (channels + D * GROUP - 1) // (D * GROUP)
    sign: gl.constexpr = -1 if REVERSE else 1
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
    sum_rows = sum_tile._reinterpret(gl.float32, [NP, 2 * T], flat(1))
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
            own_state = (batch * channels + d) * N
            at_chunk = (batch * chunks + chunk) * channels
            if bias is not None:
                bias_D = gl.load(bias + d, mask=in_d, other=0.0)
            else:
                bias_D = gl.zeros([D], gl.float32, by_d)
            for n in range(N):
                A2.index(n).store(gl.load(A + d * N + n, mask=in_d, other=0.0) * LOG2E)
                if starts is not None:
                    at_start = starts + at_chunk * (N + 1) + n * channels + d
                    h_D = gl.load(at_start, mask=in_d, other=0.0)
                elif initial is not None:
                    h_D = gl.load(initial + own_state + n, mask=in_d, other=0.0)
                else:
                    h_D = gl.zeros([D], gl.float32, by_d)
                v_rows.index(n).store(h_D)
                dA_rows.index(n).store(gl.zeros([D], gl.float32, by_d))

            u_own = u + batch * u_batch
            delta_own = delta + batch * delta_batch
            dout_own = dout + batch * dout_batch
            B_own = B + batch * B_batch
            C_own = C + batch * C_batch
            z_own = z
            if z is not None:
                z_own = z + batch * z_batch
            segments_own = segments
            if segments is not None:
                segments_own = segments + batch * segment_batch
            last = (steps - 1) // T * T
            walk_to_tile_starts(
                u_own, delta_own, B_own, segments_own, A2, v_rows, B_tile, own, bias_D, first_d, start,
                steps, length, channels, u_row, delta_row, B_row, segment_row,
                SOFTPLUS, REVERSE, N, T, WIDE, MASKED,
            )  # fmt: skip

            for n in range(N):
                if adjoints is not None:
                    at_end = adjoints + at_chunk * N + n * channels + d
                    v_rows.index(n).store(gl.load(at_end, mask=in_d, other=0.0))
                elif dfinal is not None:
                    v_rows.index(n).store(gl.load(dfinal + own_state + n, mask=in_d, other=0.0))
                else:
                    v_rows.index(n).store(gl.zeros([D], gl.float32, by_d))

            dskip = gl.zeros([D], gl.float32, by_d)
            dbias = gl.zeros([D], gl.float32, by_d)
            for back in range(0, last + T, T):
                done = last - back
                at = position(start + done, length, REVERSE)
                left = steps - done
                inside = (t < left)[:, None] & in_d[None, :]
                u_at = u_own + at * u_row
                delta_at = delta_own + at * delta_row
                dout_at = dout_own + at * dout_row
                step = step_tile(delta_at, sign * delta_row, t, d, inside, bias_D, SOFTPLUS, MASKED)
                taken_in = step * load_tile(u_at, sign * u_row, t, d, inside, MASKED)
                dy = load_tile(dout_at, sign * dout_row, t, d, inside, MASKED)
                if z is not None:
                    z_at = z_own + at * z_row
                    z_tile = load_tile(z_at, sign * z_row, t, d, inside, MASKED)
                    dy *= z_tile * sigmoid(z_tile)
                    y = gl.zeros([T, D], gl.float32, tiles)
                load_states(B_tile, B_own + at * B_row, sign * B_row, left, N)
                load_states(C_tile, C_own + at * C_row, sign * C_row, left, N)
                if segments is not None:
                    penalty = penalties(
                        segments_own + at * segment_row, sign * segment_row, start + done, left,
                        T, WIDE,
                    )[:, None]  # fmt: skip
                gl.thread_barrier()

                before = gl.maximum(done - T, 0)
                following = position(start + before, length, REVERSE)
                fetch_ahead(
                    delta_own + first_d + following * delta_row, sign * delta_row, steps - before, T, D
                )
                fetch_ahead(u_own + first_d + following * u_row, sign * u_row, steps - before, T, D)
                fetch_ahead(
                    dout_own + first_d + following * dout_row, sign * dout_row, steps - before, T, D
                )
                if z is not None:
                    fetch_ahead(
                        z_own + first_d + following * z_row, sign * z_row, steps - before, T, D
                    )
                fetch_ahead(own + before // T * (N * D), D, N, N, D)

                dtaken = gl.zeros([T, D], gl.float32, tiles)
                dexponent = gl.zeros([T, D], gl.float32, tiles)
                at_tile = own + done // T * (N * D) + lane
                next_h = gl.load(at_tile)
                for n in range(N):
                    h_D = next_h
                    next_h = gl.load(at_tile + gl.minimum(n + 1, N - 1) * D)
                    A_row = A2.index(n).load(by_d)[None, :]
                    B_column = B_rows.index(n).load(by_t)[:, None]
                    C_column = C_rows.index(n).load(by_t)[:, None]
                    exponent = step * A_row
                    if segments is not None:
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
                    kept_tile = gl.convert_layout(tile_of(kept), tiles, assert_trivial=True)
                    if z is not None:
                        y += h_tile * C_column
                    driven = rows(dy * C_column)
                    v = as_row(v_rows.index(n).load(by_d), a[0])
                    gs = ()
                    for i in gl.static_range(T):
                        g = v + driven[T - 1 - i]
                        gs = (g,) + gs  # noqa: RUF005
                        v = a[T - 1 - i] * g
                    v_rows.index(n).store(as_channels(v, by_d))
                    g_tile = gl.convert_layout(tile_of(gs), tiles, assert_trivial=True)
                    dtaken += g_tile * B_column
                    by_exponent = g_tile * kept_tile
                    dexponent += by_exponent * A_row
                    dA_D = dA_rows.index(n).load(by_d) + gl.sum(by_exponent * step, 0)
                    dA_rows.index(n).store(dA_D)
                    sum_rows.index(n).store(sum_channels(g_tile * taken_in, h_tile * dy, WIDE))
                gl.thread_barrier()

                u_tile = load_tile(u_at, sign * u_row, t, d, inside, MASKED)
                dstep = dtaken * u_tile + dexponent * LN2
                if SOFTPLUS:
                    raw = load_tile(delta_at, sign * delta_row, t, d, inside, MASKED)
                    dstep *= sigmoid(raw + bias_D[None, :])
                if MASKED:
                    dstep = gl.where(inside, dstep, 0.0)
                du_tile = dtaken * step
                dskip += gl.sum(dy * u_tile, 0)
                dbias += gl.sum(dstep, 0)
                out_at = (batch * length + at) * channels
                if D_skip is not None:
                    skip_D = gl.load(D_skip + d, mask=in_d, other=0.0)[None, :]
                    du_tile += dy * skip_D
                store_tile(du + out_at, sign * channels, t, d, inside, du_tile, MASKED)
                store_tile(ddelta + out_at, sign * channels, t, d, inside, dstep, MASKED)
                if z is not None:
                    if D_skip is not None:
                        y += u_tile * skip_D
                    z_tile = load_tile(z_own + at * z_row, sign * z_row, t, d, inside, MASKED)
                    gate = sigmoid(z_tile)
                    dz_tile = load_tile(dout_at, sign * dout_row, t, d, inside, MASKED) * y
                    dz_tile *= gate * (1.0 + z_tile * (1.0 - gate))
                    store_tile(dz + out_at, sign * channels, t, d, inside, dz_tile, MASKED)

                batches = items // groups // chunks
                found = sum_tile.load(out_layout)
                step_of = out_t % T
                target = partials + ((group * batches + batch) * length + at) * (2 * N)
                target += (step_of * (sign * 2 * N) + out_t // T * N)[None, :] + out_n[:, None]
                kept_there = (out_n < N)[:, None] & (step_of < left)[None, :]
                if GROUP > 1:
                    found += gl.load(target, mask=kept_there & (member > 0), other=0.0)
                gl.store(target, found, mask=kept_there)
                gl.thread_barrier()

            to_sums = sums + at_chunk * (N + 2) + d
            for n in range(N):
                gl.store(to_sums + n * channels, dA_rows.index(n).load(by_d), mask=in_d)
                if dinitial is not None:
                    if adjoints is None:  # noqa: SIM102
                        v_D = v_rows.index(n).load(by_d)
                        gl.store(dinitial + own_state + n, v_D, mask=in_d)
            gl.store(to_sums + N * channels, dskip, mask=in_d)
            gl.store(to_sums + (N + 1) * channels, dbias, mask=in_d)
            gl.thread_barrier()
