"""The scan's backward pass in plain Triton.

Let g_t be the derivative by h_t. It comes from the right: ``g_t = C_t dy_t + a_(t+1) g_(t+1)``,
a_t = exp(delta_t A), dy_t = dout_t silu(z_t). As in the forward pass, `summarise_adjoints` finds
what each chunk hands to its left from zero, `carry_adjoints` what enters each chunk from its
right, and `scan_gradients` walks every chunk with both.

`scan_gradients` needs the states in reverse order. It recomputes them from the chunk's saved start
state, in two levels: first the states at the starts of sub-chunks, then, sub-chunk after
sub-chunk from the last, the states within. Both levels lie in a scratch memory that a program
reuses for all its chunks. So nothing is saved but the forward pass's chunk starts.

Sums over channels (dB, dC) are formed inside a program and stored for each block of channels,
sums over time (dA, dD, the bias) for each chunk; what remains is added up afterwards in a fixed
order. There are no atomics: the same inputs give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mambakernels.scan.triton_plain_forward import advance
from mambakernels.scan.triton_primitives import (
    LOG2E,
    SIZES,
    phi,
    row_of,
    sigmoid,
    starts_segment,
    step_size,
)


@triton.jit(do_not_specialize=SIZES)
def summarise_adjoints(
    dout, delta, A, C, z, bias, segments, adjoints,
    length, channels, states, chunks, chunk_length,
    dout_batch, dout_row, delta_batch, delta_row, C_batch, C_row, z_batch, z_row,
    segment_batch, segment_row,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """adjoints (batch, chunk, state, channels) of all chunks but the first, which has no left:
    a_first g_first when g is zero after the chunk."""
    blocks = tl.cdiv(channels, BLOCK_D)
    program = tl.program_id(0)
    block = program % blocks
    chunk = 1 + (program // blocks) % (chunks - 1)
    batch = tl.cast(program // blocks // (chunks - 1), tl.int64)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_d = d < channels
    in_n = n < states
    inside = in_n[:, None] & in_d[None, :]
    dout += batch * dout_batch
    delta += batch * delta_batch
    C += batch * C_batch
    if z is not None:
        z += batch * z_batch
    if segments is not None:
        segments += batch * segment_batch

    A2 = tl.load(A + d[None, :] * states + n[:, None], mask=inside, other=0.0) * LOG2E
    if bias is not None:
        bias_D = tl.load(bias + d, mask=in_d, other=0.0)
    else:
        bias_D = tl.zeros([BLOCK_D], A2.dtype)
    v = tl.zeros([BLOCK_N, BLOCK_D], A2.dtype)
    start = chunk * chunk_length
    steps = tl.minimum(chunk_length, length - start)
    i = 0
    while i < steps:
        t = start + steps - 1 - i
        row = row_of(t, length, REVERSE)
        dy = tl.load(dout + row * dout_row + d, mask=in_d, other=0.0).to(A2.dtype)
        delta_D = tl.load(delta + row * delta_row + d, mask=in_d, other=0.0).to(A2.dtype)
        C_N = tl.load(C + row * C_row + n, mask=in_n, other=0.0).to(A2.dtype)
        if z is not None:
            z_D = tl.load(z + row * z_row + d, mask=in_d, other=0.0).to(A2.dtype)
            dy = dy * z_D * sigmoid(z_D)
        step, _ = step_size(delta_D, bias_D, SOFTPLUS)
        v = tl.exp2(A2 * step[None, :]) * (v + C_N[:, None] * dy[None, :])
        if segments is not None:  # noqa: SIM102
            if starts_segment(segments, segment_row, t, length, REVERSE):
                v = tl.zeros_like(v)
        i += 1
    out = adjoints + (batch * chunks + chunk) * states * channels
    tl.store(out + n[:, None] * channels + d[None, :], v, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def scan_gradients(
    dout, dfinal, adjoints, starts, u, delta, A, B, C, D, z, bias, initial, segments,
    du, ddelta, dz, outputs, partials, sums, dinitial, scratch,
    items, programs, length, channels, states, chunks, chunk_length, sub_length,
    dout_batch, dout_row, u_batch, u_row, delta_batch, delta_row, B_batch, B_row, C_batch, C_row,
    z_batch, z_row, segment_batch, segment_row,
    SOFTPLUS: tl.constexpr, ZOH: tl.constexpr, REVERSE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """All gradients; partials (blocks, batch, length, 2, state): dB and dC of each block of
    channels; sums (batch, chunk, state + 2, channels): dA, dD and the bias's of each chunk;
    outputs: the forward pass's, found on the way, or None.

    A program takes every `programs`-th item of batch x chunks x blocks.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_n = n < states
    tile = n[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    TILE: tl.constexpr = BLOCK_N * BLOCK_D
    subs_most = tl.cdiv(chunk_length, sub_length)
    sub_starts = scratch + tl.cast(program, tl.int64) * (subs_most + sub_length) * TILE
    befores = sub_starts + subs_most * TILE
    item = program
    while item < items:
        block = item % blocks
        chunk = (item // blocks) % chunks
        batch = tl.cast(item // blocks // chunks, tl.int64)
        d = block * BLOCK_D + tl.arange(0, BLOCK_D)
        in_d = d < channels
        inside = in_n[:, None] & in_d[None, :]
        A2 = tl.load(A + d[None, :] * states + n[:, None], mask=inside, other=0.0) * LOG2E
        if bias is not None:
            bias_D = tl.load(bias + d, mask=in_d, other=0.0)
        else:
            bias_D = tl.zeros([BLOCK_D], A2.dtype)
        if D is not None:
            D_D = tl.load(D + d, mask=in_d, other=0.0)
        else:
            D_D = tl.zeros([BLOCK_D], A2.dtype)
        own_state = (batch * channels + d[None, :]) * states + n[:, None]
        edge = n[:, None] * channels + d[None, :]
        at_chunk = (batch * chunks + chunk) * channels
        if starts is not None:
            h = tl.load(starts + at_chunk * (states + 1) + edge, mask=inside, other=0.0)
        elif initial is not None:
            h = tl.load(initial + own_state, mask=inside, other=0.0)
        else:
            h = tl.zeros([BLOCK_N, BLOCK_D], A2.dtype)
        if adjoints is not None:
            v = tl.load(adjoints + at_chunk * states + edge, mask=inside, other=0.0)
        elif dfinal is not None:
            v = tl.load(dfinal + own_state, mask=inside, other=0.0)
        else:
            v = tl.zeros([BLOCK_N, BLOCK_D], A2.dtype)

        start = chunk * chunk_length
        end = tl.minimum(start + chunk_length, length)
        subs = tl.cdiv(end - start, sub_length)
        here = segments
        if segments is not None:
            here = segments + batch * segment_batch
        tl.debug_barrier()  # the last item's reads of the scratch are done
        sub = 0
        while sub < subs:
            tl.store(sub_starts + sub * TILE + tile, h)
            first = start + sub * sub_length
            t = first
            last = tl.minimum(first + sub_length, end)
            while t < last:
                row = row_of(t, length, REVERSE)
                u_D = tl.load(u + batch * u_batch + row * u_row + d, mask=in_d, other=0.0)
                delta_D = tl.load(
                    delta + batch * delta_batch + row * delta_row + d, mask=in_d, other=0.0
                )
                B_N = tl.load(B + batch * B_batch + row * B_row + n, mask=in_n, other=0.0)
                step, _ = step_size(delta_D.to(A2.dtype), bias_D, SOFTPLUS)
                h = advance(
                    h, A2, step, step * u_D.to(A2.dtype), B_N.to(A2.dtype), here, segment_row,
                    t, length, ZOH, REVERSE,
                )  # fmt: skip
                t += 1
            sub += 1

        dA = tl.zeros([BLOCK_N, BLOCK_D], A2.dtype)
        dD = tl.zeros([BLOCK_D], A2.dtype)
        dbias = tl.zeros([BLOCK_D], A2.dtype)
        back = 0
        while back < subs:
            sub = subs - 1 - back
            first = start + sub * sub_length
            last = tl.minimum(first + sub_length, end)
            tl.debug_barrier()
            h = tl.load(sub_starts + sub * TILE + tile)
            t = first
            while t < last:
                tl.store(befores + (t - first) * TILE + tile, h)
                row = row_of(t, length, REVERSE)
                u_D = tl.load(u + batch * u_batch + row * u_row + d, mask=in_d, other=0.0)
                delta_D = tl.load(
                    delta + batch * delta_batch + row * delta_row + d, mask=in_d, other=0.0
                )
                B_N = tl.load(B + batch * B_batch + row * B_row + n, mask=in_n, other=0.0)
                step, _ = step_size(delta_D.to(A2.dtype), bias_D, SOFTPLUS)
                h = advance(
                    h, A2, step, step * u_D.to(A2.dtype), B_N.to(A2.dtype), here, segment_row,
                    t, length, ZOH, REVERSE,
                )  # fmt: skip
                t += 1
            tl.debug_barrier()
            i = 0
            while i < last - first:
                t = last - 1 - i
                row = row_of(t, length, REVERSE)
                u_D = tl.load(u + batch * u_batch + row * u_row + d, mask=in_d, other=0.0).to(
                    A2.dtype
                )
                delta_D = tl.load(
                    delta + batch * delta_batch + row * delta_row + d, mask=in_d, other=0.0
                ).to(A2.dtype)
                dy = tl.load(
                    dout + batch * dout_batch + row * dout_row + d, mask=in_d, other=0.0
                ).to(A2.dtype)
                B_N = tl.load(B + batch * B_batch + row * B_row + n, mask=in_n, other=0.0).to(
                    A2.dtype
                )
                C_N = tl.load(C + batch * C_batch + row * C_row + n, mask=in_n, other=0.0).to(
                    A2.dtype
                )
                before = tl.load(befores + (t - first) * TILE + tile)
                fresh = False
                if segments is not None:
                    fresh = starts_segment(here, segment_row, t, length, REVERSE)
                    if fresh:
                        before = tl.zeros_like(before)
                step, raw = step_size(delta_D, bias_D, SOFTPLUS)
                a = tl.exp2(A2 * step[None, :])
                kept = a * before
                x = B_N[:, None] * (step * u_D)[None, :]
                out = (batch * length + row) * channels + d
                if ZOH:
                    phi1, phi2 = phi(A2 * step[None, :] * (1.0 / LOG2E), a)
                    h = kept + x * phi1
                else:
                    h = kept + x
                y = tl.sum(h * C_N[:, None], 0) + D_D * u_D
                if z is not None:
                    z_D = tl.load(z + batch * z_batch + row * z_row + d, mask=in_d, other=0.0).to(
                        A2.dtype
                    )
                    gate = sigmoid(z_D)
                    dz_D = dy * y * gate * (1.0 + z_D * (1.0 - gate))
                    tl.store(dz + out, dz_D.to(dz.dtype.element_ty), mask=in_d)
                    y = y * z_D * gate
                    dy = dy * z_D * gate
                if outputs is not None:
                    tl.store(outputs + out, y.to(outputs.dtype.element_ty), mask=in_d)
                g = v + C_N[:, None] * dy[None, :]
                dC_N = tl.sum(h * dy[None, :], 1)
                dx = g * kept  # by the exponent step A
                entered = g  # by x
                if ZOH:
                    dx += g * x * (phi1 - phi2)
                    entered = g * phi1
                dB_N = tl.sum(entered * (step * u_D)[None, :], 1)
                dtaken = tl.sum(entered * B_N[:, None], 0)
                dstep = dtaken * u_D + tl.sum(dx * A2, 0) * (1.0 / LOG2E)
                dA += dx * step[None, :]
                v = a * g
                if segments is not None:  # noqa: SIM102
                    if fresh:
                        v = tl.zeros_like(v)
                if SOFTPLUS:
                    dstep = dstep * sigmoid(raw)
                dbias += dstep
                dD += dy * u_D
                du_D = dtaken * step + D_D * dy
                tl.store(du + out, du_D.to(du.dtype.element_ty), mask=in_d)
                tl.store(ddelta + out, dstep.to(ddelta.dtype.element_ty), mask=in_d)
                batches = items // blocks // chunks
                by_state = ((block * batches + batch) * length + row) * (2 * states)
                tl.store(partials + by_state + n, dB_N, mask=in_n)
                tl.store(partials + by_state + states + n, dC_N, mask=in_n)
                i += 1
            back += 1

        out_sums = sums + at_chunk * (states + 2)
        tl.store(out_sums + edge, dA, mask=inside)
        tl.store(out_sums + states * channels + d, dD, mask=in_d)
        tl.store(out_sums + (states + 1) * channels + d, dbias, mask=in_d)
        if dinitial is not None:
            tl.store(dinitial + own_state, v, mask=inside & (chunk == 0))
        item += programs
