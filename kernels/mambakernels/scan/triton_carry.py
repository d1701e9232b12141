"""From what each chunk does to the state to the state at every chunk's edge, in plain Triton.

Sequential over the chunks, parallel over batch, channels and states; AHEAD chunks are read while
the AHEAD before them are worked on. Small beside the passes over time: one step for every
`chunk_length` of theirs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mambakernels.scan.triton_primitives import LOG2E, part


@part
def decay_of(A2, total):
    """exp(A total), with 0 for the infinite total of a chunk that a reset cuts."""
    return tl.where(total == float("inf"), 0.0, tl.exp2(A2 * total))


@part
def read_chunks(owns, own_stride, totals, total_stride, first, sign, chunks, in_d, AHEAD):
    """What AHEAD chunks do, from the first on to the right (sign 1) or to the left (-1)."""
    found = ()
    for i in tl.static_range(AHEAD):
        chunk = first + sign * i
        inside = in_d & (chunk >= 0) & (chunk < chunks)
        own = tl.load(owns + chunk * own_stride, mask=inside, other=0.0)
        total = tl.load(totals + chunk * total_stride, mask=inside, other=0.0)
        found = found + (own, total)  # noqa: RUF005
    return found


@triton.jit
def carry_states(
    summaries, A, initial, starts, final, decay,
    channels, states, chunks,
    BLOCK_D: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """h -> exp(A total) h + own, chunk after chunk.

    summaries (batch, chunk, state + 1, channels) -> starts (the same shape, which may be the same
    memory, or None): every chunk's start state, its last row the sums of steps; final: the last
    state; decay (or None): what the whole stretch multiplies a state by.
    """
    blocks = tl.cdiv(channels, BLOCK_D)
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
    stride = tl.cast(states + 1, tl.int64) * channels
    owns = summaries + batch * chunks * stride + n * channels + d
    totals = summaries + batch * chunks * stride + states * channels + d
    found = read_chunks(owns, stride, totals, stride, 0, 1, chunks, in_d, AHEAD)
    first = tl.cast(0, tl.int32)
    while first < chunks:
        following = read_chunks(owns, stride, totals, stride, first + AHEAD, 1, chunks, in_d, AHEAD)
        for i in tl.static_range(AHEAD):
            if starts is not None:
                at = (batch * chunks + first + i) * stride + n * channels + d
                tl.store(starts + at, h, mask=in_d & (first + i < chunks))
            h = decay_of(A2, found[2 * i + 1]) * h + found[2 * i]
            whole += found[2 * i + 1]
        found = following
        first += AHEAD
    tl.store(final + own_state, h, mask=in_d)
    if decay is not None:
        tl.store(decay + own_state, decay_of(A2, whole), mask=in_d)


@triton.jit
def carry_adjoints(
    starts, A, dfinal, adjoints, dinitial,
    channels, states, chunks,
    BLOCK_D: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """The same from the last chunk to the first, for the derivatives by the state.

    adjoints (batch, chunk, state, channels): in, what each chunk hands to the left when nothing
    enters it from the right; out, what enters it from the right. starts: only its last row, the
    sums of steps, is read. dinitial (or None): what leaves the first chunk.
    """
    blocks = tl.cdiv(channels, BLOCK_D)
    program = tl.program_id(0)
    d = (program % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = (program // blocks) % states
    batch = tl.cast(program // blocks // states, tl.int64)
    in_d = d < channels
    A2 = tl.load(A + d * states + n, mask=in_d, other=0.0) * LOG2E
    own_state = (batch * channels + d) * states + n
    if dfinal is not None:
        v = tl.load(dfinal + own_state, mask=in_d, other=0.0)
    else:
        v = tl.zeros([BLOCK_D], A2.dtype)
    width = tl.cast(channels, tl.int64)
    stride = width * states
    owns = adjoints + batch * chunks * stride + n * width + d
    totals = starts + batch * chunks * (stride + width) + stride + d
    last = chunks - 1
    found = read_chunks(owns, stride, totals, stride + width, last, -1, chunks, in_d, AHEAD)
    while last >= 0:
        following = read_chunks(
            owns, stride, totals, stride + width, last - AHEAD, -1, chunks, in_d, AHEAD
        )
        for i in tl.static_range(AHEAD):
            tl.store(owns + (last - i) * stride, v, mask=in_d & (last - i >= 0))
            v = decay_of(A2, found[2 * i + 1]) * v + found[2 * i]
        found = following
        last -= AHEAD
    if dinitial is not None:
        tl.store(dinitial + own_state, v, mask=in_d)
