"""Decoding on the CPU as one compiled loop: embedding, blocks, slow levels when due, head, pick.

Python is asked once for a block of symbols, so a step costs its arithmetic and the reading of its
weights. Rows are streams of their own; threads take one each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mambakernels._numba import jit
from mambakernels._simd import LANES
from mambakernels._threads import run
from mambakernels.decode.cpu_blocks import run_blocks
from mambakernels.decode.cpu_layout import (
    CONDITION,
    DOWN,
    DOWN_COUNT,
    EMBEDDING,
    END,
    FINAL_NORM,
    FRAME,
    HEAD,
    HEAD_BIAS,
    INPUTS,
    LEVEL_WIDTH,
    PENDING,
    PHASES,
    POOL,
    POOL_DOWN,
    POOL_DOWN_BIAS,
    POOL_UP,
    POOL_UP_BIAS,
    SYMBOLS,
    UP,
    UP_COUNT,
)
from mambakernels.decode.cpu_linear import linear, rms_norm
from mambakernels.decode.cpu_sampling import log_sum, pick


class Program(NamedTuple):
    """A model laid out for decoding; see `cpu_layout`. It does not change while decoding."""

    model: NDArray[np.int64]
    levels: NDArray[np.int64]
    blocks: NDArray[np.int64]
    weights: NDArray[np.float32]
    wide_weights: NDArray[np.float64]
    eps: float
    state_size: int
    wide_state_size: int
    scratch_size: int
    wide_scratch_size: int


class Streams(NamedTuple):
    """What each row carries, changed in place.

    state, wide_state: (rows, numbers). positions: (rows, levels) place within each level's frame;
    last: (rows,) the symbol that is fed next; ended: (rows,) whether the end was met.
    """

    state: NDArray[np.float32]
    wide_state: NDArray[np.float64]
    positions: NDArray[np.int64]
    last: NDArray[np.int64]
    ended: NDArray[np.bool_]


@jit(inner=True)
def _advance(model, levels, blocks, weights, wide_weights, eps, state, wide_state, positions,
             memory, wide, symbol):  # fmt: skip
    """Feed one symbol; its scores are left at memory[returned place ..]."""
    width = levels[0, LEVEL_WIDTH]
    padded = (width + LANES - 1) // LANES * LANES
    phase = positions[0] % model[PHASES]
    source = model[EMBEDDING] + (phase * model[INPUTS] + symbol) * padded
    for d in range(padded):
        memory[d] = weights[source + d] + state[model[CONDITION] + d]
    heard, scores, x, level = padded, 0, 0, 0
    while True:
        width = levels[level, LEVEL_WIDTH]
        padded = (width + LANES - 1) // LANES * LANES
        free = x + padded
        slowest = level == levels.shape[0] - 1
        pool, place = levels[level, POOL], positions[level]
        run_blocks(blocks, levels[level, DOWN], levels[level, DOWN_COUNT], eps, weights,
                   wide_weights, state, wide_state, memory, wide, x, free)  # fmt: skip
        if not slowest:
            pending = levels[level, PENDING]
            for d in range(width):
                state[pending + place * width + d] = memory[x + d]
                memory[x + d] += state[levels[level, FRAME] + place * width + d]
        run_blocks(blocks, levels[level, UP], levels[level, UP_COUNT], eps, weights,
                   wide_weights, state, wide_state, memory, wide, x, free)  # fmt: skip
        if level == 0:
            # The output needs nothing of the slower levels' coming frame.
            h = free + LANES
            rms_norm(weights, model[FINAL_NORM], eps, width, memory, x, h, free)
            scores = h + padded
            outputs = (model[PHASES] * model[SYMBOLS] + LANES - 1) // LANES * LANES
            linear(weights, model[HEAD], model[HEAD_BIAS], width, outputs, memory, h, scores)
            heard = scores + outputs
            scores += phase * model[SYMBOLS]
        else:
            # What this level gives to the faster one in its next frame.
            above, count = level - 1, levels[level - 1, POOL] * levels[level - 1, LEVEL_WIDTH]
            outputs = (count + LANES - 1) // LANES * LANES
            linear(weights, levels[above, POOL_UP], levels[above, POOL_UP_BIAS], width, outputs,
                   memory, x, free)  # fmt: skip
            for d in range(count):
                state[levels[above, FRAME] + d] = memory[free + d]
        if slowest:
            return scores
        positions[level] = place + 1
        if place + 1 < pool:
            return scores
        positions[level] = 0
        # The frame is whole: the slower level's step.
        count = pool * width
        x = heard
        for d in range(count):
            memory[x + d] = state[levels[level, PENDING] + d]
        below = (levels[level + 1, LEVEL_WIDTH] + LANES - 1) // LANES * LANES
        linear(weights, levels[level, POOL_DOWN], levels[level, POOL_DOWN_BIAS], count, below,
               memory, x, x + count)  # fmt: skip
        x += count
        heard = x + below
        level += 1


@jit
def _generate(row, model, levels, blocks, weights, wide_weights, eps, states, wide_states,
              positions, last, ended, memory, wide, uniforms, temperature, top_k, top_p, guidance,
              exponent, symbols, log_probabilities):  # fmt: skip
    state, wide_state, place = states[row], wide_states[row], positions[row]
    symbol, count, end = last[row], model[SYMBOLS], model[END]
    told, guided = np.empty(count, np.float32), np.empty(count, np.float32)
    untold = row + len(uniforms)
    for t in range(uniforms.shape[1]):
        if ended[row]:
            symbols[row, t] = end
            log_probabilities[row, t] = 0.0
            continue
        phase = place[0] % model[PHASES]
        scores = _advance(model, levels, blocks, weights, wide_weights, eps, state, wide_state,
                          place, memory, wide, symbol)  # fmt: skip
        # A sample of several parts can only end before its first one.
        allowed = count - 1 if end >= 0 and phase > 0 else count
        for k in range(count):
            told[k] = guided[k] = memory[scores + k]
        if guidance != 1.0:
            scores = _advance(model, levels, blocks, weights, wide_weights, eps, states[untold],
                              wide_states[untold], positions[untold], memory, wide,
                              symbol)  # fmt: skip
            for k in range(count):
                guided[k] = guidance * told[k] + (1.0 - guidance) * memory[scores + k]
        values = count - 1 if end >= 0 else count
        symbol = pick(guided, 0, allowed, uniforms[row, t], temperature, top_k, top_p, values,
                      exponent)  # fmt: skip
        log_probabilities[row, t] = told[symbol] - log_sum(told, 0, count)
        symbols[row, t] = symbol
        ended[row] = symbol == end
    last[row] = symbol
    if guidance != 1.0:
        last[untold], ended[untold] = symbol, ended[row]


@jit
def _score(row, model, levels, blocks, weights, wide_weights, eps, states, wide_states, positions,
           last, memory, wide, symbols, scores):  # fmt: skip
    for t in range(symbols.shape[1]):
        at = _advance(model, levels, blocks, weights, wide_weights, eps, states[row],
                      wide_states[row], positions[row], memory, wide, last[row])  # fmt: skip
        for k in range(model[SYMBOLS]):
            scores[row, t, k] = memory[at + k]
        last[row] = symbols[row, t]


def _scratch(program: Program) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    return (
        np.zeros(program.scratch_size, np.float32),
        np.zeros(program.wide_scratch_size, np.float64),
    )


def generate(
    program: Program,
    streams: Streams,
    uniforms: NDArray[np.float64],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    guidance: float = 1.0,
    core_temperature: float = 1.0,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Symbols (rows, n) and their log-probabilities (nats), one uniform (rows, n) for each.

    A row that has met its end goes on with end symbols of log-probability 0. With guidance g other
    than 1 there are two streams for each row of uniforms, those that were not told the condition
    last, and symbols are picked by scores g s + (1 - g) s' of the two; both are fed them. Symbols
    within two standard deviations of the mean, the end aside, have their probabilities raised to
    1 / core_temperature and together keep theirs.
    """
    symbols = np.empty(uniforms.shape, np.int64)
    logs = np.empty(uniforms.shape, np.float32)

    def part(row: int) -> None:
        memory, wide = _scratch(program)
        _generate(row, *program[:6], *streams, memory, wide, uniforms, temperature, top_k, top_p,
                  guidance, 1.0 / core_temperature, symbols, logs)  # fmt: skip

    run(part, len(uniforms))
    return symbols, logs


def score(program: Program, streams: Streams, symbols: NDArray[np.int64]) -> NDArray[np.float32]:
    """Scores (rows, n, V) beside given symbols (rows, n), which the streams go through."""
    scores = np.empty((*symbols.shape, int(program.model[SYMBOLS])), np.float32)

    def part(row: int) -> None:
        memory, wide = _scratch(program)
        _score(row, *program[:6], *streams[:4], memory, wide, symbols, scores)

    run(part, len(symbols))
    return scores
