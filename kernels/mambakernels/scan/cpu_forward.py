"""The scan forward on the CPU, compiled.

Computes out and the final state for some channels of one batch row, a tile of steps at a time and
16 channels side by side in a vector. The states of 16 channels stay in the first-level cache for
the whole length; nothing of shape (batch, length, channels, state) exists.
Reads u, delta, z once and B, C once a group of channels; writes out once.
Saves for the backward: the states that enter each tile, as (batch, tiles, blocks, n, 16).

Work for each vector of 16 states and step: 14 vector instructions for the exponential (argument,
two clamps, rounding by a large addend, remainder, degree-6 polynomial, exponent), 3 for input,
recurrence and output; with two vector units that is 8.5 cycles for 16 states.
"""

from __future__ import annotations

from mambakernels._numba import jit
from mambakernels._simd import (
    LANES,
    add,
    exp2,
    fma,
    fold4,
    load,
    load4,
    mul,
    phi,
    repeat4,
    sigmoid,
    softplus,
    spread4,
    stay_apart,
    store,
    zero4,
)
from mambakernels.scan.cpu_tiles import (
    ADDRESS,
    clear,
    padded,
    read_channels,
    read_tile,
    write_channels,
    write_tile,
)

U, DELTA, B, C, Z, OUT = range(6)  # rows of the table of tensors
LOG2_E = 1.4426950408889634
QUAD = 4 * LANES


def scratch_size(tile, blocks, states):
    """Numbers of scratch memory that `forward` needs."""
    tiles = 2 * tile * padded(states, LANES) + 3 * tile * LANES
    return tiles + LANES * (2 + blocks * (1 + 3 * padded(states, 4)))


@jit(inner=True)
def read_rates(A, channel, lanes, states, scratch, rates, inverses):
    """A log2(e) and 1 / A of 16 channels; zero in lanes and states that do not exist."""
    stay_apart()
    clear(scratch, rates, padded(states, 4) * LANES)
    read_channels(A, channel * states, states, lanes, scratch, rates)
    for k in range(padded(states, 4) * LANES):
        scratch[inverses + k] = 1 / scratch[rates + k]
        scratch[rates + k] *= LOG2_E


@jit(inner=True)
def read_vector(flat, start, lanes, scratch, to):
    clear(scratch, to, LANES)
    for lane in range(lanes):
        scratch[to + lane] = flat[start + lane]


@jit(inner=True)
def prepare_delta(delta_bias, channel, lanes, rows, use_softplus, scratch, delta, spare):
    """Add the bias and apply softplus, in place."""
    stay_apart()
    if delta_bias.size > 0:
        read_vector(delta_bias, channel, lanes, scratch, spare)
        bias = load(scratch, spare)
        for i in range(rows):
            store(scratch, delta + i * LANES, add(load(scratch, delta + i * LANES), bias))
    if use_softplus:
        for i in range(rows):
            store(scratch, delta + i * LANES, softplus(load(scratch, delta + i * LANES)))


@jit(inner=True)
def step_euler(start, stop, states, stride, scratch, delta, taken_in, rates, B_at, C_at, state, y):
    """Steps of a tile: state = exp2(delta rates) state + taken_in B; y = C state."""
    stay_apart()
    for i in range(start, stop):
        d = repeat4(load(scratch, delta + i * LANES))
        x = repeat4(load(scratch, taken_in + i * LANES))
        total = zero4(scratch)
        for n in range(0, states, 4):
            a = exp2(mul(d, load4(scratch, rates + n * LANES)))
            entering = mul(x, spread4(scratch, B_at + i * stride + n))
            h = fma(a, load4(scratch, state + n * LANES), entering)
            store(scratch, state + n * LANES, h)
            total = fma(h, spread4(scratch, C_at + i * stride + n), total)
        store(scratch, y + i * LANES, fold4(total))


@jit(inner=True)
def step_zoh(
    start, stop, states, stride, scratch, delta, u, rates, inverses, B_at, C_at, state, y
):  # fmt: skip
    """The same with the zero-order hold: phi u B enters, phi = (exp(delta A) - 1) / A."""
    stay_apart()
    for i in range(start, stop):
        d = repeat4(load(scratch, delta + i * LANES))
        x = repeat4(load(scratch, u + i * LANES))
        total = zero4(scratch)
        for n in range(0, states, 4):
            x2 = mul(d, load4(scratch, rates + n * LANES))
            weight = phi(x2, d, load4(scratch, inverses + n * LANES))
            entering = mul(mul(weight, x), spread4(scratch, B_at + i * stride + n))
            h = fma(exp2(x2), load4(scratch, state + n * LANES), entering)
            store(scratch, state + n * LANES, h)
            total = fma(h, spread4(scratch, C_at + i * stride + n), total)
        store(scratch, y + i * LANES, fold4(total))


@jit
def forward(
    table, A, D, delta_bias, initial_state, final_state, saved, totals, resets, scratch, tile,
    batch, channels, first_channel, last_channel, length, states, use_softplus, zoh, reverse,
):  # fmt: skip
    """Channels first_channel..last_channel of one batch row. Flat arrays; of size 0 if absent."""
    stride = padded(states, LANES)
    per_block = padded(states, 4) * LANES
    blocks = (last_channel - first_channel + LANES - 1) // LANES
    all_blocks = (channels + LANES - 1) // LANES
    tiles = (length + tile - 1) // tile

    B_at = 0
    C_at = B_at + tile * stride
    delta = C_at + tile * stride
    u = delta + tile * LANES
    y = u + tile * LANES
    spare = y + tile * LANES
    sums = spare + 2 * LANES
    all_rates = sums + blocks * LANES
    all_inverses = all_rates + blocks * per_block
    all_states = all_inverses + blocks * per_block

    clear(scratch, C_at, tile * stride)
    clear(scratch, sums, blocks * LANES)
    clear(scratch, all_states, blocks * per_block)
    for block in range(blocks):
        channel = first_channel + block * LANES
        lanes = min(LANES, last_channel - channel)
        read_rates(
            A, channel, lanes, states, scratch,
            all_rates + block * per_block, all_inverses + block * per_block,
        )  # fmt: skip
        if initial_state.size > 0:
            at = (batch * channels + channel) * states
            read_channels(initial_state, at, states, lanes, scratch, all_states + block * per_block)

    step = -1 if reverse else 1
    next_tile = step * tile
    for number in range(tiles):
        start = number * tile
        rows = min(tile, length - start)
        first = length - 1 - start if reverse else start
        read_tile(table, B, batch, first, step, rows, next_tile, 0, states, scratch, B_at, stride)
        if table[C, ADDRESS] != 0:
            read_tile(
                table, C, batch, first, step, rows, next_tile, 0, states, scratch, C_at, stride
            )
        for block in range(blocks):
            channel = first_channel + block * LANES
            lanes = min(LANES, last_channel - channel)
            rates = all_rates + block * per_block
            inverses = all_inverses + block * per_block
            state = all_states + block * per_block
            if saved.size > 0:
                to = ((batch * tiles + number) * all_blocks + channel // LANES) * states * LANES
                for k in range(0, states * LANES, LANES):
                    store(saved, to + k, load(scratch, state + k))
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
            prepare_delta(delta_bias, channel, lanes, rows, use_softplus, scratch, delta, spare)
            if totals.size > 0:
                total = load(scratch, sums + block * LANES)
                for i in range(rows):
                    total = add(total, load(scratch, delta + i * LANES))
                store(scratch, sums + block * LANES, total)
            if not zoh:
                for i in range(0, rows * LANES, LANES):
                    store(scratch, u + i, mul(load(scratch, u + i), load(scratch, delta + i)))

            run = 0
            while run < rows:  # stretches without a reset inside
                stop = rows
                if resets.size > 0:
                    if resets[batch * length + first + step * run] != 0:
                        clear(scratch, state, per_block)
                    stop = run + 1
                    while stop < rows and resets[batch * length + first + step * stop] == 0:
                        stop += 1
                if zoh:
                    step_zoh(
                        run, stop, states, stride, scratch, delta, u, rates, inverses,
                        B_at, C_at, state, y,
                    )  # fmt: skip
                else:
                    step_euler(
                        run, stop, states, stride, scratch, delta, u, rates,
                        B_at, C_at, state, y,
                    )  # fmt: skip
                run = stop

            if table[OUT, ADDRESS] == 0:
                continue
            if D.size > 0:
                read_tile(
                    table, U, batch, first, step, rows, next_tile, channel, lanes, scratch, u, LANES
                )
                read_vector(D, channel, lanes, scratch, spare)
                weight = load(scratch, spare)
                for i in range(0, rows * LANES, LANES):
                    store(scratch, y + i, fma(load(scratch, u + i), weight, load(scratch, y + i)))
            if table[Z, ADDRESS] != 0:
                read_tile(
                    table, Z, batch, first, step, rows, next_tile, channel, lanes, scratch, u, LANES
                )
                for i in range(0, rows * LANES, LANES):
                    z = load(scratch, u + i)
                    store(scratch, y + i, mul(load(scratch, y + i), mul(z, sigmoid(z))))
            write_tile(
                table, OUT, batch, first, step, rows, next_tile, channel, lanes, scratch, y, LANES
            )

    for block in range(blocks):
        channel = first_channel + block * LANES
        lanes = min(LANES, last_channel - channel)
        at = (batch * channels + channel) * states
        write_channels(final_state, at, states, lanes, scratch, all_states + block * per_block)
        if totals.size > 0:
            for lane in range(lanes):
                totals[batch * channels + channel + lane] = scratch[sums + block * LANES + lane]
