"""The scan backward on the CPU, compiled.

Goes through the tiles from the last step to the first. For each tile and 16 channels it computes
the states and decays again from the saved state that enters the tile (`recall_*`), keeps them in
the second-level cache, and walks back over them (`sweep_*`):

    g_t = a_(t+1) g_(t+1) + dy_t C_t            the gradient of h_t
    dC_t = sum over channels of dy_t h_t        dB_t = sum over channels of g_t delta_t u_t
    q_t = g_t a_t h_(t-1)                       the gradient of the exponent delta_t A
    d(delta_t u_t) = sum over n of g_t B_t      ddelta_t = A q_t + u_t d(delta_t u_t)
    dA = sum over t of delta_t q_t

Sums over channels are made in a fixed order: in a vector by halves, over the vectors of a group of
channels one after another, over groups at the end (`join_parts`). Reads what the forward reads,
dout and the saved states; writes the gradients once, and (groups, batch, length, n)
parts of dB, dC.

Work for each vector of 16 states and step: 17 vector instructions to recompute, 9 to sweep, about
6 to sum over lanes: 16 cycles for 16 states.
"""

from __future__ import annotations

from mambakernels._numba import jit
from mambakernels._simd import (
    LANES,
    fma,
    load,
    mul,
    sigmoid,
    softplus,
    store,
)
from mambakernels.scan.cpu_forward import prepare_delta, read_rates, read_vector
from mambakernels.scan.cpu_sweep import (
    enter_gate,
    finish,
    recall_euler,
    recall_zoh,
    sweep_euler,
    sweep_zoh,
)
from mambakernels.scan.cpu_tiles import (
    ADDRESS,
    accumulate,
    clear,
    padded,
    read_channels,
    read_tile,
    write_channels,
    write_tile,
)

# Rows of the table of tensors; the first five are the forward's.
U, DELTA, B, C, Z, DOUT, DU, DDELTA, DZ, DB, DC = range(11)


def scratch_size(tile, blocks, states):
    """Numbers of scratch memory that `backward` needs."""
    per_block = padded(states, 4) * LANES
    along = 4 * tile * padded(states, LANES) + 9 * tile * LANES
    history = (2 * tile + 2) * per_block + 2 * padded(states, LANES) * LANES
    return along + history + 2 * LANES + blocks * (4 * per_block + 2 * LANES) + per_block


@jit
def backward(
    table, A, D, delta_bias, dfinal_state, saved, resets, dA, dD, dbias, dinitial_state, scratch,
    tile, batch, batches, channels, group, first_channel, last_channel, length, states,
    use_softplus, zoh, reverse,
):  # fmt: skip
    """Channels first_channel..last_channel of one batch row: group number `group`.

    Flat arrays; of size 0 if absent. dA (batches, channels, states) and dD, dbias (batches,
    channels) are sums over the length only. DB and DC of the table are (groups * batches, length,
    states).
    """
    stride = padded(states, LANES)
    per_block = padded(states, 4) * LANES
    blocks = (last_channel - first_channel + LANES - 1) // LANES
    all_blocks = (channels + LANES - 1) // LANES
    tiles = (length + tile - 1) // tile

    B_at = 0
    C_at = B_at + tile * stride
    dB_at = C_at + tile * stride
    dC_at = dB_at + tile * stride
    delta = dC_at + tile * stride
    slope = delta + tile * LANES
    u = slope + tile * LANES
    taken_in = u + tile * LANES
    dy = taken_in + tile * LANES
    y = dy + tile * LANES
    from_input = y + tile * LANES
    from_rate = from_input + tile * LANES
    from_hold = from_rate + tile * LANES
    D_lanes = from_hold + tile * LANES
    spare = D_lanes + LANES
    to_dB = spare + LANES
    to_dC = to_dB + stride * LANES
    nothing = to_dC + stride * LANES
    history = nothing + per_block
    decays = history + (tile + 1) * per_block
    tile_dA = decays + tile * per_block
    all_rates = tile_dA + per_block
    all_inverses = all_rates + blocks * per_block
    all_gradients = all_inverses + blocks * per_block
    all_dA = all_gradients + blocks * per_block
    all_sums = all_dA + blocks * per_block

    clear(scratch, to_dB, 2 * stride * LANES + per_block)
    clear(scratch, all_gradients, blocks * (2 * per_block + 2 * LANES))
    for block in range(blocks):
        channel = first_channel + block * LANES
        lanes = min(LANES, last_channel - channel)
        read_rates(
            A, channel, lanes, states, scratch,
            all_rates + block * per_block, all_inverses + block * per_block,
        )  # fmt: skip
        if dfinal_state.size > 0:
            at = (batch * channels + channel) * states
            read_channels(
                dfinal_state, at, states, lanes, scratch, all_gradients + block * per_block
            )

    step = -1 if reverse else 1
    next_tile = -step * tile
    for number in range(tiles - 1, -1, -1):
        begin = number * tile
        rows = min(tile, length - begin)
        first = length - 1 - begin if reverse else begin
        read_tile(table, B, batch, first, step, rows, next_tile, 0, states, scratch, B_at, stride)
        read_tile(table, C, batch, first, step, rows, next_tile, 0, states, scratch, C_at, stride)
        clear(scratch, dB_at, 2 * tile * stride)
        for block in range(blocks):
            channel = first_channel + block * LANES
            lanes = min(LANES, last_channel - channel)
            rates = all_rates + block * per_block
            inverses = all_inverses + block * per_block
            gradient = all_gradients + block * per_block
            sum_D = all_sums + block * 2 * LANES

            at = ((batch * tiles + number) * all_blocks + channel // LANES) * states * LANES
            clear(scratch, history, per_block)
            for k in range(0, states * LANES, LANES):
                store(scratch, history + k, load(saved, at + k))
            clear(scratch, tile_dA, per_block)
            clear(scratch, D_lanes, LANES)
            if D.size > 0:
                read_vector(D, channel, lanes, scratch, D_lanes)
            read_tile(
                table, U, batch, first, step, rows, next_tile, channel, lanes, scratch, u, LANES
            )
            read_tile(
                table,
                DELTA,
                batch,
                first,
                step,
                rows,
                next_tile,
                channel,
                lanes,
                scratch,
                delta,
                LANES,
            )
            read_tile(
                table, DOUT, batch, first, step, rows, next_tile, channel, lanes, scratch, dy, LANES
            )
            prepare_delta(delta_bias, channel, lanes, rows, False, scratch, delta, spare)
            if use_softplus:
                for i in range(0, rows * LANES, LANES):
                    raw = load(scratch, delta + i)
                    store(scratch, slope + i, sigmoid(raw))
                    store(scratch, delta + i, softplus(raw))
            for i in range(0, rows * LANES, LANES):
                store(scratch, taken_in + i, mul(load(scratch, u + i), load(scratch, delta + i)))

            run = 0
            while run < rows:  # stretches without a reset inside
                entering = history + run * per_block
                stop = rows
                if resets.size > 0:
                    if resets[batch * length + first + step * run] != 0:
                        entering = nothing
                    stop = run + 1
                    while stop < rows and resets[batch * length + first + step * stop] == 0:
                        stop += 1
                if zoh:
                    recall_zoh(
                        run, stop, states, stride, per_block, scratch, delta, u, rates, inverses,
                        B_at, C_at, entering, history, decays, y,
                    )  # fmt: skip
                else:
                    recall_euler(
                        run, stop, states, stride, per_block, scratch, delta, taken_in, rates,
                        B_at, C_at, entering, history, decays, y,
                    )  # fmt: skip
                run = stop

            if table[Z, ADDRESS] != 0:
                z = from_input  # free until the sweep
                weight = load(scratch, D_lanes)
                for i in range(0, rows * LANES, LANES):
                    store(scratch, y + i, fma(load(scratch, u + i), weight, load(scratch, y + i)))
                read_tile(
                    table, Z, batch, first, step, rows, next_tile, channel, lanes, scratch, z, LANES
                )
                enter_gate(rows, scratch, dy, z, y)
                write_tile(
                    table,
                    DZ,
                    batch,
                    first,
                    step,
                    rows,
                    next_tile,
                    channel,
                    lanes,
                    scratch,
                    z,
                    LANES,
                )

            stop = rows
            while stop > 0:
                run = 0
                if resets.size > 0:
                    run = stop - 1
                    while run > 0 and resets[batch * length + first + step * run] == 0:
                        run -= 1
                entering = history + run * per_block
                reset = resets.size > 0 and resets[batch * length + first + step * run] != 0
                if reset:
                    entering = nothing
                if zoh:
                    sweep_zoh(
                        run, stop, states, stride, per_block, scratch, delta, u, dy, rates,
                        inverses, B_at, C_at, entering, history, decays, gradient, tile_dA,
                        to_dB, to_dC, dB_at, dC_at, from_input, from_rate, from_hold,
                    )  # fmt: skip
                else:
                    sweep_euler(
                        run, stop, states, stride, per_block, scratch, delta, taken_in, dy, rates,
                        B_at, C_at, entering, history, decays, gradient, tile_dA,
                        to_dB, to_dC, dB_at, dC_at, from_input, from_rate,
                    )  # fmt: skip
                if reset:
                    clear(scratch, gradient, per_block)
                stop = run

            accumulate(scratch, all_dA + block * per_block, tile_dA, per_block)
            finish(
                rows, zoh, use_softplus, scratch, delta, slope, u, dy, from_input, from_rate,
                from_hold, D_lanes, sum_D, sum_D + LANES, taken_in, y,
            )  # fmt: skip
            write_tile(
                table,
                DU,
                batch,
                first,
                step,
                rows,
                next_tile,
                channel,
                lanes,
                scratch,
                taken_in,
                LANES,
            )
            write_tile(
                table,
                DDELTA,
                batch,
                first,
                step,
                rows,
                next_tile,
                channel,
                lanes,
                scratch,
                y,
                LANES,
            )
        part = group * batches + batch
        write_tile(table, DB, part, first, step, rows, next_tile, 0, states, scratch, dB_at, stride)
        write_tile(table, DC, part, first, step, rows, next_tile, 0, states, scratch, dC_at, stride)

    for block in range(blocks):
        channel = first_channel + block * LANES
        lanes = min(LANES, last_channel - channel)
        at = (batch * channels + channel) * states
        write_channels(dA, at, states, lanes, scratch, all_dA + block * per_block)
        if dinitial_state.size > 0:
            write_channels(
                dinitial_state, at, states, lanes, scratch, all_gradients + block * per_block
            )
        for lane in range(lanes):
            sum_D = all_sums + block * 2 * LANES + lane
            if dD.size > 0:
                dD[batch * channels + channel + lane] = scratch[sum_D]
            if dbias.size > 0:
                dbias[batch * channels + channel + lane] = scratch[sum_D + LANES]


@jit
def join_parts(table, source, target, scratch, groups, batches, batch, start, stop, states):
    """Add up the groups' parts of dB or dC for some steps of a batch row, in the groups' order."""
    stride = padded(states, LANES)
    rows = stop - start
    count = rows * stride
    read_tile(table, source, batch, start, 1, rows, 0, 0, states, scratch, 0, stride)
    for group in range(1, groups):
        part = group * batches + batch
        read_tile(table, source, part, start, 1, rows, 0, 0, states, scratch, count, stride)
        accumulate(scratch, 0, count, count)
    write_tile(table, target, batch, start, 1, rows, 0, 0, states, scratch, 0, stride)
