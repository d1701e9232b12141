"""From what each chunk does to the state to the state at every chunk's edge, in plain Triton.

Sequential over the chunks, parallel over batch, channels and states; a few chunks are read ahead
at a time. Small beside the passes over time: one step for `chunk_length` of theirs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mambakernels.scan.triton_primitives import LOG2E, part


@part
def decay_of(A2, total):
    """exp(A total), with 0 for the infinite total of a chunk that a reset cuts."""
    return tl.where(total == float("inf"), 0.0, tl.exp2(A2 * total))


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
    base = batch * chunks * stride + d
    first = 0
    while first < chunks:
        owns = ()
        totals = ()
        for i in tl.static_range(AHEAD):
            at = base + (first + i) * stride
            here = in_d & (first + i < chunks)
            owns = owns + (tl.load(summaries + at + n * channels, mask=here, other=0.0),)  # noqa: RUF005
            totals = totals + (tl.load(summaries + at + states * channels, mask=here, other=0.0),)  # noqa: RUF005
        for i in tl.static_range(AHEAD):
            at = base + (first + i) * stride
            here = in_d & (first + i < chunks)
            if starts is not None:
                tl.store(starts + at + n * channels, h, mask=here)
            h = decay_of(A2, totals[i]) * h + owns[i]
            whole += totals[i]
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
    done = 0
    while done < chunks:
        owns = ()
        totals = ()
        for i in tl.static_range(AHEAD):
            chunk = chunks - 1 - done - i
            here = in_d & (chunk >= 0)
            at = batch * chunks + chunk
            owns = owns + (  # noqa: RUF005
                tl.load(adjoints + (at * states + n) * width + d, mask=here, other=0.0),
            )
            totals = totals + (  # noqa: RUF005
                tl.load(starts + (at * (states + 1) + states) * width + d, mask=here, other=0.0),
            )
        for i in tl.static_range(AHEAD):
            chunk = chunks - 1 - done - i
            here = in_d & (chunk >= 0)
            at = batch * chunks + chunk
            tl.store(adjoints + (at * states + n) * width + d, v, mask=here)
            v = decay_of(A2, totals[i]) * v + owns[i]
        done += AHEAD
    if dinitial is not None:
        tl.store(dinitial + own_state, v, mask=in_d)
