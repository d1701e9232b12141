"""Causal depthwise convolution in plain Triton: tiles of time and channels, channels innermost.

Forward: reads x and writes out once (the other taps of a tile come from the first-level cache).
Backward: nothing is saved but the inputs. Up to four taps, a first pass reads x and dout, computes
the pre-activation again, writes its gradient and sums those of the weights; a second one reads that
gradient and writes dx: five tensors moved. Wider, one pass computes every pre-activation that an
input reaches: three tensors moved, but width^2 taps computed. A program walks `CHUNK` rows and
keeps a weight gradient of its own; these are added in their order: the same inputs, the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mambakernels.conv.reference import final_state, run_starts

CHUNK = 1024  # most rows a program walks
_PROGRAMS = 132 * 16  # below this many, programs walk fewer rows
_INTERPRETED_CHUNK = 32
_NARROW = 4  # most taps for which the first pass of the backward has sums


@triton.jit
def _tap(
    x, initial, starts, batch, time, at, length, channels, x_batch, x_row, d, in_d,
    WIDTH: tl.constexpr, TAP: tl.constexpr,
):  # fmt: skip
    """Rows at - (WIDTH - 1) + TAP of the input, float, zero where they do not count for `at`."""
    row = at - (WIDTH - 1) + TAP
    counts = (at < length) & (row < length)
    if starts is not None:
        start = tl.load(starts + batch * length + at, mask=at < length, other=0)
        counts = counts & (row >= start)
    inside = (counts & (row >= 0))[:, None] & in_d[None, :]
    value = tl.load(x + batch * x_batch + row[:, None] * x_row + d[None, :], mask=inside, other=0.0)
    if initial is not None:
        carried = (counts & (row < 0))[:, None] & in_d[None, :]
        before = (batch * (WIDTH - 1) + row[:, None] + WIDTH - 1) * channels + d[None, :]
        value = tl.where(carried, tl.load(initial + before, mask=carried, other=0.0), value)
    return value


@triton.jit
def _forward(
    x, weight, bias, initial, starts, out, length, channels, x_batch, x_row, chunks,
    WIDTH: tl.constexpr, SILU: tl.constexpr, SUM: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    batch = tl.cast(tl.program_id(0) // chunks, tl.int64)
    first = tl.cast(tl.program_id(0) % chunks, tl.int64) * CHUNK
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = d < channels
    tile = 0
    while tile < CHUNK:
        time = first + tile + tl.arange(0, ROWS)
        total = tl.zeros([ROWS, BLOCK_D], SUM)
        if bias is not None:
            total += tl.load(bias + d, mask=in_d, other=0.0).to(SUM)[None, :]
        for k in tl.static_range(WIDTH):
            w = tl.load(weight + d * WIDTH + k, mask=in_d, other=0.0).to(SUM)
            value = _tap(
                x, initial, starts, batch, time, time, length, channels, x_batch, x_row, d, in_d,
                WIDTH, k,
            )  # fmt: skip
            total += w[None, :] * value.to(SUM)
        if SILU:
            total = total / (1.0 + tl.exp(-total))
        inside = (time < length)[:, None] & in_d[None, :]
        place = out + (batch * length + time[:, None]) * channels + d[None, :]
        tl.store(place, total.to(out.dtype.element_ty), mask=inside)
        tile += ROWS


@triton.jit
def _backward(
    dout, dfinal, x, weight, bias, initial, starts, dx, dinitial, sums,
    length, channels, dout_batch, dout_row, x_batch, x_row, chunks,
    WIDTH: tl.constexpr, SILU: tl.constexpr, SUM: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, PAD_W: tl.constexpr, FRONT: tl.constexpr,
    SUMS: tl.constexpr,
):  # fmt: skip
    """Rows first - (WIDTH - 1) of the first chunk are the initial state's.

    dx_s = sum_j weight[WIDTH - 1 - j] dpre_(s + j), where s counts for s + j; sums (batch x
    chunks, WIDTH + 1, channels): the gradients of weight and bias over the times of this chunk.
    """
    program = tl.program_id(0)
    batch = tl.cast(program // chunks, tl.int64)
    chunk = program % chunks
    first = tl.cast(chunk, tl.int64) * CHUNK
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = d < channels
    taps = tl.arange(0, PAD_W)
    dweight = tl.zeros([PAD_W, BLOCK_D], SUM)
    dbias = tl.zeros([BLOCK_D], SUM)
    if bias is not None:
        bias_D = tl.load(bias + d, mask=in_d, other=0.0).to(SUM)
    else:
        bias_D = tl.zeros([BLOCK_D], SUM)
    # The initial state's rows stand before the first chunk's, in a tile of their own.
    tile = tl.where((chunk == 0) & (dinitial is not None), -FRONT, 0)
    while tile < CHUNK:
        row = first + tile + tl.arange(0, ROWS)
        total = tl.zeros([ROWS, BLOCK_D], SUM)
        for j in tl.static_range(WIDTH):
            at = row + j
            pre = tl.zeros([ROWS, BLOCK_D], SUM) + bias_D[None, :]
            valid = (at < length) & (at >= 0)
            inside = valid[:, None] & in_d[None, :]
            place = dout + batch * dout_batch + at[:, None] * dout_row + d[None, :]
            dpre = tl.load(place, mask=inside, other=0.0).to(SUM)
            if SILU:
                for k in tl.static_range(WIDTH):
                    w = tl.load(weight + d * WIDTH + k, mask=in_d, other=0.0).to(SUM)
                    value = _tap(
                        x, initial, starts, batch, row, tl.maximum(at, 0), length, channels,
                        x_batch, x_row, d, in_d, WIDTH, k,
                    )  # fmt: skip
                    pre += w[None, :] * value.to(SUM)
                gate = 1.0 / (1.0 + tl.exp(-pre))
                dpre = dpre * gate * (1.0 + pre * (1.0 - gate))
            counts = valid
            if starts is not None:
                start = tl.load(starts + batch * length + at, mask=valid, other=0)
                counts = counts & (row >= start)
            w = tl.load(weight + d * WIDTH + (WIDTH - 1 - j), mask=in_d, other=0.0).to(SUM)
            total += tl.where(counts[:, None], w[None, :] * dpre, 0.0)
            if j == 0 and tile >= 0:
                dbias += tl.sum(dpre, 0)
                for k in tl.static_range(WIDTH):
                    value = _tap(
                        x, initial, starts, batch, row, row, length, channels, x_batch, x_row,
                        d, in_d, WIDTH, k,
                    )  # fmt: skip
                    share = tl.sum(dpre * value.to(SUM), 0)
                    dweight += tl.where((taps == k)[:, None], share[None, :], 0.0)
        if dfinal is not None:
            kept = row - (length - (WIDTH - 1))
            counts = (kept >= 0) & (kept < WIDTH - 1) & (row >= -(WIDTH - 1))
            if starts is not None:
                counts = counts & (row >= tl.load(starts + batch * length + length - 1))
            inside = counts[:, None] & in_d[None, :]
            place = (batch * (WIDTH - 1) + kept[:, None]) * channels + d[None, :]
            total += tl.load(dfinal + place, mask=inside, other=0.0).to(SUM)
        inside = ((row >= 0) & (row < length))[:, None] & in_d[None, :]
        place = dx + (batch * length + row[:, None]) * channels + d[None, :]
        tl.store(place, total.to(dx.dtype.element_ty), mask=inside)
        if dinitial is not None:
            inside = ((row < 0) & (row >= -(WIDTH - 1)))[:, None] & in_d[None, :]
            before = (batch * (WIDTH - 1) + row[:, None] + WIDTH - 1) * channels + d[None, :]
            tl.store(dinitial + before, total.to(dinitial.dtype.element_ty), mask=inside)
        tile += ROWS
    if SUMS:
        place = sums + tl.cast(program, tl.int64) * (WIDTH + 1) * channels
        inside = (taps < WIDTH)[:, None] & in_d[None, :]
        tl.store(place + taps[:, None] * channels + d[None, :], dweight, mask=inside)
        tl.store(place + WIDTH * channels + d, dbias, mask=in_d)


@triton.jit
def _slopes(
    dout, x, weight, bias, initial, starts, dpre, sums,
    length, channels, dout_batch, dout_row, x_batch, x_row, chunks,
    WIDTH: tl.constexpr, SILU: tl.constexpr, SUM: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dpre, the gradient before the activation, and the sums of `_backward`; at most four taps."""
    program = tl.program_id(0)
    batch = tl.cast(program // chunks, tl.int64)
    first = tl.cast(program % chunks, tl.int64) * CHUNK
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = d < channels
    if bias is not None:
        bias_D = tl.load(bias + d, mask=in_d, other=0.0).to(SUM)
    else:
        bias_D = tl.zeros([BLOCK_D], SUM)
    # One tile of sums a tap, reduced over its rows once: not a reduction a step.
    sum0 = tl.zeros([ROWS, BLOCK_D], SUM)
    sum1 = tl.zeros([ROWS, BLOCK_D], SUM)
    sum2 = tl.zeros([ROWS, BLOCK_D], SUM)
    sum3 = tl.zeros([ROWS, BLOCK_D], SUM)
    dbias = tl.zeros([ROWS, BLOCK_D], SUM)
    tile = 0
    while tile < CHUNK:
        time = first + tile + tl.arange(0, ROWS)
        inside = (time < length)[:, None] & in_d[None, :]
        place = dout + batch * dout_batch + time[:, None] * dout_row + d[None, :]
        slope = tl.load(place, mask=inside, other=0.0).to(SUM)
        tap0 = _tap(x, initial, starts, batch, time, time, length, channels, x_batch, x_row, d,
                    in_d, WIDTH, 0).to(SUM)  # fmt: skip
        tap1 = tap0
        tap2 = tap0
        tap3 = tap0
        if WIDTH > 1:
            tap1 = _tap(x, initial, starts, batch, time, time, length, channels, x_batch, x_row,
                        d, in_d, WIDTH, 1).to(SUM)  # fmt: skip
        if WIDTH > 2:
            tap2 = _tap(x, initial, starts, batch, time, time, length, channels, x_batch, x_row,
                        d, in_d, WIDTH, 2).to(SUM)  # fmt: skip
        if WIDTH > 3:
            tap3 = _tap(x, initial, starts, batch, time, time, length, channels, x_batch, x_row,
                        d, in_d, WIDTH, 3).to(SUM)  # fmt: skip
        if SILU:
            w = weight + d * WIDTH
            pre = bias_D[None, :] + tl.load(w, mask=in_d, other=0.0).to(SUM)[None, :] * tap0
            if WIDTH > 1:
                pre += tl.load(w + 1, mask=in_d, other=0.0).to(SUM)[None, :] * tap1
            if WIDTH > 2:
                pre += tl.load(w + 2, mask=in_d, other=0.0).to(SUM)[None, :] * tap2
            if WIDTH > 3:
                pre += tl.load(w + 3, mask=in_d, other=0.0).to(SUM)[None, :] * tap3
            gate = 1.0 / (1.0 + tl.exp(-pre))
            slope = slope * gate * (1.0 + pre * (1.0 - gate))
            place = dpre + (batch * length + time[:, None]) * channels + d[None, :]
            tl.store(place, slope.to(dpre.dtype.element_ty), mask=inside)
        sum0 += slope * tap0
        if WIDTH > 1:
            sum1 += slope * tap1
        if WIDTH > 2:
            sum2 += slope * tap2
        if WIDTH > 3:
            sum3 += slope * tap3
        dbias += slope
        tile += ROWS
    place = sums + tl.cast(program, tl.int64) * (WIDTH + 1) * channels + d
    tl.store(place, tl.sum(sum0, 0), mask=in_d)
    if WIDTH > 1:
        tl.store(place + channels, tl.sum(sum1, 0), mask=in_d)
    if WIDTH > 2:
        tl.store(place + 2 * channels, tl.sum(sum2, 0), mask=in_d)
    if WIDTH > 3:
        tl.store(place + 3 * channels, tl.sum(sum3, 0), mask=in_d)
    tl.store(place + WIDTH * channels, tl.sum(dbias, 0), mask=in_d)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    segment_ids: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Outputs and the last width - 1 inputs, those of earlier segments zeroed."""
    batch, length, channels = x.shape
    width = weight.shape[1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        x, shape = _rows(x), _shape(batch, length, channels)
        chunks = triton.cdiv(length, shape["CHUNK"])
        _forward[(batch * chunks, triton.cdiv(channels, shape["BLOCK_D"]))](
            x, weight.contiguous(), bias, _whole(initial_state), _starts(segment_ids, width), out,
            length, channels, x.stride(0), x.stride(1), chunks,
            WIDTH=width, SILU=silu, SUM=_sum(x), **shape,
        )  # fmt: skip
    return out, final_state(x, width, initial_state, segment_ids)


def backward(
    dout: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    segment_ids: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and initial state, the weights' in the sums' dtype."""
    batch, length, channels = x.shape
    width = weight.shape[1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    given = initial_state is not None
    dinitial = x.new_empty(batch if given else 0, width - 1, channels)
    if not dx.numel():
        if given and dfinal is not None:
            dinitial.copy_(dfinal)
        return dx, weight.new_zeros(weight.shape), weight.new_zeros(channels), dinitial
    x, dout, weight = _rows(x), _rows(dout), weight.contiguous()
    initial, starts = _whole(initial_state), _starts(segment_ids, width)
    shape = _shape(batch, length, channels)
    chunks = triton.cdiv(length, shape["CHUNK"])
    grid = (batch * chunks, triton.cdiv(channels, shape["BLOCK_D"]))
    sums = x.new_empty(batch * chunks, width + 1, channels, dtype=dtype)
    two_passes = width <= _NARROW
    if two_passes:
        dpre = torch.empty_like(dx) if silu else dout
        _slopes[grid](
            dout, x, weight, bias, initial, starts, dpre, sums,
            length, channels, dout.stride(0), dout.stride(1), x.stride(0), x.stride(1), chunks,
            WIDTH=width, SILU=silu, SUM=_sum(x), **(shape | {"ROWS": 16}),
        )  # fmt: skip
        dout, silu = dpre, False
    _backward[grid](
        dout, _whole(dfinal), x, weight, bias, initial, starts, dx,
        dinitial if given and width > 1 else None, sums,
        length, channels, dout.stride(0), dout.stride(1), x.stride(0), x.stride(1), chunks,
        WIDTH=width, SILU=silu, SUM=_sum(x), PAD_W=triton.next_power_of_2(width),
        FRONT=triton.cdiv(width - 1, shape["ROWS"]) * shape["ROWS"], SUMS=not two_passes, **shape,
    )  # fmt: skip
    total = sums.sum(0)
    return dx, total[:width].t().contiguous(), total[width].clone(), dinitial


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _whole(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None or tensor.numel() == 0 else tensor.contiguous()


def _starts(segment_ids: Tensor | None, width: int) -> Tensor | None:
    return None if segment_ids is None else run_starts(segment_ids, width - 1).contiguous()


def _sum(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def _shape(batch: int, length: int, channels: int) -> dict[str, int]:
    """Rows of a tile, channels of a program and rows that it walks."""
    if triton.knobs.runtime.interpret:
        return {"ROWS": 16, "BLOCK_D": 16, "CHUNK": _INTERPRETED_CHUNK}
    block = min(128, triton.next_power_of_2(channels))
    walked = triton.next_power_of_2(batch * length * triton.cdiv(channels, block) // _PROGRAMS + 1)
    return {"ROWS": 32, "BLOCK_D": block, "CHUNK": min(CHUNK, max(32, walked))}
