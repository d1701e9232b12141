"""Adding up what the gradient kernels leave for each block of channels and for each chunk.

Every sum runs in a fixed order, so the same inputs give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mambakernels.scan.triton_primitives import SIZES, part


@part
def _add_partials(program, partials, dB, dC, groups, count, states, BLOCK, AHEAD):
    at = tl.cast(program, tl.int64) * BLOCK + tl.arange(0, BLOCK)
    width = tl.cast(count, tl.int64) * 2 * states
    inside = at < width
    total = tl.zeros([BLOCK], partials.dtype.element_ty)
    group = tl.cast(0, tl.int64)
    while group < groups:
        for i in tl.static_range(AHEAD):
            here = inside & (group + i < groups)
            total += tl.load(partials + (group + i) * width + at, mask=here, other=0.0)
        group += AHEAD
    row = at // (2 * states)
    n = at % (2 * states)
    to_B = row * states + n
    tl.store(dB + to_B, total.to(dB.dtype.element_ty), mask=inside & (n < states))
    tl.store(dC + to_B - states, total.to(dC.dtype.element_ty), mask=inside & (n >= states))


@part
def _add_chunks(program, sums, dA, dD, dbias, chunks, channels, states, BLOCK_K, BLOCK_D):
    blocks = tl.cdiv(channels, BLOCK_D)
    row = program // blocks
    d = (program % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    k = tl.arange(0, BLOCK_K)
    in_d = d < channels
    stride = tl.cast(states + 2, tl.int64) * channels
    total = tl.zeros([BLOCK_K, BLOCK_D], sums.dtype.element_ty)
    first = tl.cast(0, tl.int32)
    while first < chunks:
        at = (first + k)[:, None] * stride + row * channels + d[None, :]
        total += tl.load(sums + at, mask=(first + k < chunks)[:, None] & in_d[None, :], other=0.0)
        first += BLOCK_K
    found = tl.sum(total, 0)
    tl.store(dA + d * states + row, found, mask=in_d & (row < states))
    if dD is not None:
        tl.store(dD + d, found, mask=in_d & (row == states))
    if dbias is not None:
        tl.store(dbias + d, found, mask=in_d & (row == states + 1))


@triton.jit(do_not_specialize=SIZES)
def add_up(
    partials, dB, dC, sums, dA, dD, dbias, groups, count, chunks, channels, states, split,
    BLOCK: tl.constexpr, AHEAD: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dB, dC (count, state) from partials (groups, count, 2, state), by the first `split` programs;
    dA (channels, state), dD and dbias (channels,) from sums (chunks, state + 2, channels), by the
    others, one for each row and block of channels."""
    program = tl.program_id(0)
    if program < split:
        _add_partials(program, partials, dB, dC, groups, count, states, BLOCK, AHEAD)
    else:
        _add_chunks(
            program - split, sums, dA, dD, dbias, chunks, channels, states, BLOCK_K, BLOCK_D
        )
