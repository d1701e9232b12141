"""Adding up what the gradient kernels leave for each block of channels and for each chunk.

Every sum runs in a fixed order, so the same inputs give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_partials(partials, dB, dC, groups, count, states, BLOCK: tl.constexpr):
    """dB, dC (count, state) from partials (groups, count, 2, state), added from the first group."""
    at = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    width = tl.cast(count, tl.int64) * 2 * states
    inside = at < width
    total = tl.zeros([BLOCK], partials.dtype.element_ty)
    group = tl.cast(0, tl.int64)
    while group < groups:
        total += tl.load(partials + group * width + at, mask=inside, other=0.0)
        group += 1
    row = at // (2 * states)
    n = at % (2 * states)
    to_B = row * states + n
    tl.store(dB + to_B, total.to(dB.dtype.element_ty), mask=inside & (n < states))
    tl.store(dC + to_B - states, total.to(dC.dtype.element_ty), mask=inside & (n >= states))


@triton.jit
def add_chunks(
    sums, dA, dD, dbias, count, channels, states, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr
):
    """dA (channels, state), dD and dbias (channels,) from sums (count, state + 2, channels)."""
    blocks = tl.cdiv(channels, BLOCK_D)
    row = tl.program_id(0) // blocks
    d = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    k = tl.arange(0, BLOCK_K)
    in_d = d < channels
    stride = tl.cast(states + 2, tl.int64) * channels
    total = tl.zeros([BLOCK_K, BLOCK_D], sums.dtype.element_ty)
    first = tl.cast(0, tl.int32)
    while first < count:
        at = (first + k)[:, None] * stride + row * channels + d[None, :]
        total += tl.load(sums + at, mask=(first + k < count)[:, None] & in_d[None, :], other=0.0)
        first += BLOCK_K
    found = tl.sum(total, 0)
    tl.store(dA + d * states + row, found, mask=in_d & (row < states))
    if dD is not None:
        tl.store(dD + d, found, mask=in_d & (row == states))
    if dbias is not None:
        tl.store(dbias + d, found, mask=in_d & (row == states + 1))
