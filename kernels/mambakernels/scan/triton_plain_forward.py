"""The scan's forward pass in plain Triton.

Time is cut into chunks. `summarise` finds, for every chunk, the state that it makes from zero and
the sum of its steps (so that its decay is exp(A sum)); `carry_states` (in `triton_carry`) turns
these into the state at every chunk's start; `scan_outputs` walks every chunk from there. With one
chunk there is only `scan_outputs`.

A program walks one chunk of BLOCK_D channels. Its state is a tile (BLOCK_N, BLOCK_D), states
first, so that a thread holds all the states of a channel and sums over them without talking to
its neighbours.

Reads u, delta, B (twice), C and z once; writes out once and, in float32, (state + 1) numbers per
chunk and channel: the chunk's start states, kept for the backward pass, and the sum of its steps.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mambakernels.scan.triton_primitives import (
    LOG2E,
    SIZES,
    part,
    phi,
    row_of,
    sigmoid,
    starts_segment,
    step_size,
)


@part
def advance(
    h, A2, step, taken_in, B_N, segments, stride_segment, t, length,
    ZOH: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """The state after one step, from the state before it; and the decay without resets."""
    a = tl.exp2(A2 * step[None, :])
    x = B_N[:, None] * taken_in[None, :]
    if ZOH:
        phi1, _ = phi(A2 * step[None, :] * (1.0 / LOG2E), a)
        x = x * phi1
    if segments is not None:  # noqa: SIM102
        if starts_segment(segments, stride_segment, t, length, REVERSE):
            h = tl.zeros_like(h)
    return a * h + x


@triton.jit(do_not_specialize=SIZES)
def summarise(
    u, delta, A, B, bias, segments, summaries,
    length, channels, states, chunks, chunk_length, count,
    u_batch, u_row, delta_batch, delta_row, B_batch, B_row, segment_batch, segment_row,
    SOFTPLUS: tl.constexpr, ZOH: tl.constexpr, REVERSE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """summaries (batch, chunk, state + 1, channels), of the first `count` chunks: the state that
    each makes from zero, and the sum of its steps.

    A reset inside a chunk makes the sum infinite: the chunk forgets what came before.
    """
    blocks = tl.cdiv(channels, BLOCK_D)
    program = tl.program_id(0)
    block = program % blocks
    chunk = (program // blocks) % count
    batch = tl.cast(program // blocks // count, tl.int64)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_d = d < channels
    in_n = n < states
    inside = in_n[:, None] & in_d[None, :]
    u += batch * u_batch
    delta += batch * delta_batch
    B += batch * B_batch
    if segments is not None:
        segments += batch * segment_batch

    A2 = tl.load(A + d[None, :] * states + n[:, None], mask=inside, other=0.0) * LOG2E
    if bias is not None:
        bias_D = tl.load(bias + d, mask=in_d, other=0.0)
    else:
        bias_D = tl.zeros([BLOCK_D], A2.dtype)
    h = tl.zeros([BLOCK_N, BLOCK_D], A2.dtype)
    total = tl.zeros([BLOCK_D], A2.dtype)
    start = chunk * chunk_length
    t = start
    end = tl.minimum(start + chunk_length, length)
    while t < end:
        row = row_of(t, length, REVERSE)
        u_D = tl.load(u + row * u_row + d, mask=in_d, other=0.0).to(A2.dtype)
        delta_D = tl.load(delta + row * delta_row + d, mask=in_d, other=0.0).to(A2.dtype)
        B_N = tl.load(B + row * B_row + n, mask=in_n, other=0.0).to(A2.dtype)
        step, _ = step_size(delta_D, bias_D, SOFTPLUS)
        h = advance(
            h, A2, step, step * u_D, B_N, segments, segment_row, t, length, ZOH, REVERSE
        )  # fmt: skip
        total += step
        if segments is not None:  # noqa: SIM102
            if starts_segment(segments, segment_row, t, length, REVERSE):
                total += float("inf")
        t += 1
    out = summaries + (batch * chunks + chunk) * (states + 1) * channels
    tl.store(out + n[:, None] * channels + d[None, :], h, mask=inside)
    tl.store(out + states * channels + d, total, mask=in_d)


@triton.jit(do_not_specialize=SIZES)
def scan_outputs(
    u, delta, A, B, C, D, z, bias, initial, segments, starts, out, final,
    length, channels, states, chunks, chunk_length,
    u_batch, u_row, delta_batch, delta_row, B_batch, B_row, C_batch, C_row, z_batch, z_row,
    segment_batch, segment_row,
    SOFTPLUS: tl.constexpr, ZOH: tl.constexpr, REVERSE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out and the final state, from the chunks' start states; or, where starts is None, in one
    chunk from the initial state. The last chunk writes its sum of steps into starts."""
    blocks = tl.cdiv(channels, BLOCK_D)
    program = tl.program_id(0)
    block = program % blocks
    chunk = (program // blocks) % chunks
    batch = tl.cast(program // blocks // chunks, tl.int64)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_d = d < channels
    in_n = n < states
    inside = in_n[:, None] & in_d[None, :]
    u += batch * u_batch
    delta += batch * delta_batch
    B += batch * B_batch
    C += batch * C_batch
    out += batch * length * channels
    if z is not None:
        z += batch * z_batch
    if segments is not None:
        segments += batch * segment_batch

    A2 = tl.load(A + d[None, :] * states + n[:, None], mask=inside, other=0.0) * LOG2E
    if bias is not None:
        bias_D = tl.load(bias + d, mask=in_d, other=0.0)
    else:
        bias_D = tl.zeros([BLOCK_D], A2.dtype)
    if D is not None:
        D_D = tl.load(D + d, mask=in_d, other=0.0)
    else:
        D_D = tl.zeros([BLOCK_D], A2.dtype)
    row_states = (batch * channels + d[None, :]) * states + n[:, None]
    if starts is not None:
        starts += (batch * chunks + chunk) * (states + 1) * channels
        h = tl.load(starts + n[:, None] * channels + d[None, :], mask=inside, other=0.0)
    elif initial is not None:
        h = tl.load(initial + row_states, mask=inside, other=0.0)
    else:
        h = tl.zeros([BLOCK_N, BLOCK_D], A2.dtype)

    total = tl.zeros([BLOCK_D], A2.dtype)
    start = chunk * chunk_length
    t = start
    end = tl.minimum(start + chunk_length, length)
    while t < end:
        row = row_of(t, length, REVERSE)
        u_D = tl.load(u + row * u_row + d, mask=in_d, other=0.0).to(A2.dtype)
        delta_D = tl.load(delta + row * delta_row + d, mask=in_d, other=0.0).to(A2.dtype)
        B_N = tl.load(B + row * B_row + n, mask=in_n, other=0.0).to(A2.dtype)
        C_N = tl.load(C + row * C_row + n, mask=in_n, other=0.0).to(A2.dtype)
        step, _ = step_size(delta_D, bias_D, SOFTPLUS)
        h = advance(
            h, A2, step, step * u_D, B_N, segments, segment_row, t, length, ZOH, REVERSE
        )  # fmt: skip
        total += step
        if segments is not None:  # noqa: SIM102
            if starts_segment(segments, segment_row, t, length, REVERSE):
                total += float("inf")
        y = tl.sum(h * C_N[:, None], 0) + D_D * u_D
        if z is not None:
            z_D = tl.load(z + row * z_row + d, mask=in_d, other=0.0).to(A2.dtype)
            y = y * z_D * sigmoid(z_D)
        tl.store(out + row * channels + d, y.to(out.dtype.element_ty), mask=in_d)
        t += 1
    if chunk == chunks - 1:
        tl.store(final + row_states, h, mask=inside)
        if starts is not None:
            tl.store(starts + states * channels + d, total, mask=in_d)
