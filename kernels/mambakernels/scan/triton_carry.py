"""From what each chunk does to the state to the state at every chunk's edge, in plain Triton.

Sequential over the chunks, parallel over batch, channels and states; AHEAD chunks are read while
the AHEAD before them are worked on. Small beside the passes over time: one step for every
`chunk_length` of theirs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mambakernels.scan.triton_primitives import LOG2E, SIZES, part


@part
def decay_of(A2, total):
    """exp(A total), with 0 for the infinite total of a chunk that a reset cuts."""
    return tl.where(total == float("inf"), 0.0, tl.exp2(A2 * total))


@part
def read_chunks(owns, totals, own_stride, total_stride, left, in_d, AHEAD):
    """What the next AHEAD chunks do, of which `left` exist."""
    found = ()
    for i in tl.static_range(AHEAD):
        inside = in_d & (i < left)
        own = tl.load(owns + i * own_stride, mask=inside, other=0.0)
        total = tl.load(totals + i * total_stride, mask=inside, other=0.0)
        found = found + (own, total)  # noqa: RUF005
    return found


@triton.jit(do_not_specialize=SIZES)
def carry_states(
    summaries, A, initial, starts, final, decay, chunks, count,
    channels: tl.constexpr, states: tl.constexpr, COPY: tl.constexpr,
    BLOCK_D: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """h -> exp(A total) h + own, through the first `count` chunks.

    summaries (batch, chunk, state + 1, channels) -> starts (the same shape, or None): the states
    at these chunks' starts and, if there is one, the next; its last row is the sums of steps.
    COPY: starts is other memory than summaries. final, decay (or None): the state after these
    chunks, and what they multiply a state by.
    """
    blocks: tl.constexpr = (channels + BLOCK_D - 1) // BLOCK_D
    stride: tl.constexpr = (states + 1) * channels
    program = tl.program_id(0)
    d = (program % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = (program // blocks) % states
    batch = tl.cast(program // blocks // states, tl.int64)
    in_d = d < channels
    A2 = tl.load(A + d * states + n, mask=in_d, other=0.0) * LOG2E
    own_state = (batch * channels + d) * states + n
    if initial is not None:
        h = tl.load(initial + own_state, mask=in_d, other=0.0)
    else:
        h = tl.zeros([BLOCK_D], A2.dtype)
    whole = tl.zeros([BLOCK_D], A2.dtype)
    base = batch * chunks * stride + d
    owns = summaries + base + n * channels
    totals = summaries + base + states * channels
    found = read_chunks(owns, totals, stride, stride, count, in_d, AHEAD)
    first = tl.cast(0, tl.int32)
    while first < count:
        left = count - first
        owns += AHEAD * stride
        totals += AHEAD * stride
        following = read_chunks(owns, totals, stride, stride, left - AHEAD, in_d, AHEAD)
        for i in tl.static_range(AHEAD):
            if starts is not None:
                tl.store(starts + base + n * channels + i * stride, h, mask=in_d & (i < left))
                if COPY:
                    mask = in_d & (i < left) & (n == 0)
                    tl.store(starts + base + states * channels + i * stride, found[2 * i + 1], mask)
            h = tl.where(i < left, decay_of(A2, found[2 * i + 1]) * h + found[2 * i], h)
            whole += found[2 * i + 1]
        found = following
        first += AHEAD
        base += AHEAD * stride
    if starts is not None:
        after = (batch * chunks + count) * stride + d + n * channels
        tl.store(starts + after, h, mask=in_d & (count < chunks))
    if final is not None:
        tl.store(final + own_state, h, mask=in_d)
    if decay is not None:
        tl.store(decay + own_state, decay_of(A2, whole), mask=in_d)


@triton.jit(do_not_specialize=SIZES)
def carry_adjoints(
    starts, A, dfinal, adjoints, chunks,
    channels: tl.constexpr, states: tl.constexpr, BLOCK_D: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The same from the last chunk to the first, for the derivatives by the state.

    adjoints (batch, chunk, state, channels): in, what each chunk but the first hands to the left
    when nothing enters it from the right; out, what enters each from the right. starts: only its
    last row, the sums of steps, is read.
    """
    blocks: tl.constexpr = (channels + BLOCK_D - 1) // BLOCK_D
    stride: tl.constexpr = states * channels
    program = tl.program_id(0)
    d = (program % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = (program // blocks) % states
    batch = tl.cast(program // blocks // states, tl.int64)
    in_d = d < channels
    A2 = tl.load(A + d * states + n, mask=in_d, other=0.0) * LOG2E
    if dfinal is not None:
        v = tl.load(dfinal + (batch * channels + d) * states + n, mask=in_d, other=0.0)
    else:
        v = tl.zeros([BLOCK_D], A2.dtype)
    last = batch * chunks + chunks - 1
    owns = adjoints + last * stride + n * channels + d
    totals = starts + last * (stride + channels) + stride + d
    left = chunks - 1
    found = read_chunks(owns, totals, -stride, -stride - channels, left, in_d, AHEAD)
    while left > 0:
        following = read_chunks(
            owns - AHEAD * stride, totals - AHEAD * (stride + channels), -stride,
            -stride - channels, left - AHEAD, in_d, AHEAD,
        )  # fmt: skip
        for i in tl.static_range(AHEAD):
            tl.store(owns - i * stride, v, mask=in_d & (i < left))
            v = tl.where(i < left, decay_of(A2, found[2 * i + 1]) * v + found[2 * i], v)
        found = following
        owns -= AHEAD * stride
        totals -= AHEAD * (stride + channels)
        left -= AHEAD
    tl.store(adjoints + batch * chunks * stride + n * channels + d, v, mask=in_d)
