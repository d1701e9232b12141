"""Causal depthwise convolution on the CPU: compiled vectors over channels, tiled over time.

Reads x and writes out once (forward); reads x and dout and writes dx once (backward), where each
tile computes its pre-activation again and each part of the work keeps a weight gradient of its
own; these are added in the parts' order, so that the bits do not depend on the threads.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mambakernels._numba import jit
from mambakernels._rows import (
    add_row,
    aligned,
    clear,
    is_given,
    read_rows,
    sum_parts,
    table_of,
    whole_vectors,
    write_rows,
)
from mambakernels._simd import LANES, add, fma, load, mul, sigmoid, store, sub, zero
from mambakernels._threads import run
from mambakernels.conv.reference import final_state, run_starts

_TILE = 64  # rows computed in one go
_WIDE = 128  # and channels: such a tile stays in the first-level cache
_PART = 1 << 18  # elements that one thread takes at a time
_NONE = np.empty(0, dtype=np.int64)

X, INITIAL, DOUT, DFINAL, OUT, DINITIAL = range(6)  # rows of the table of tensors


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
    if length == 1:
        return _one_step(x, weight, bias, initial_state, silu)
    out = torch.empty(x.shape, dtype=x.dtype)
    given = [_rows(t) for t in (x, initial_state, None, None, out, None)]
    table = table_of(*given)
    weights = _weights(x, weight, bias)
    starts = _starts(segment_ids, width)
    rows, parts = _share(length, channels)
    columns = whole_vectors(channels, _WIDE)

    def part(i: int) -> None:
        b, first = i // parts, i % parts * rows
        last = min(first + rows, length)
        scratch = aligned((_TILE + width) * _WIDE, weights.dtype)
        _forward_part(
            table, weights, starts, silu, scratch, b, first, last, length, channels, columns
        )

    run(part, batch * parts)
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
    dx = torch.empty(x.shape, dtype=x.dtype)
    dinitial = torch.empty(batch, width - 1, channels, dtype=x.dtype)
    given = [_rows(t) for t in (x, initial_state, dout, dfinal, dx, dinitial)]
    table = table_of(*given)
    weights = _weights(x, weight, bias)
    starts = _starts(segment_ids, width)
    rows, parts = _share(length, channels)
    columns = whole_vectors(channels, _WIDE)
    sums = np.zeros((batch * parts, (width + 1) * columns), dtype=weights.dtype)

    def part(i: int) -> None:
        b, first = i // parts, i % parts * rows
        last = min(first + rows, length)
        scratch = aligned((2 * _TILE + 3 * width) * _WIDE, weights.dtype)
        _backward_part(
            table,
            weights,
            starts,
            silu,
            scratch,
            sums[i],
            b,
            first,
            last,
            length,
            channels,
            columns,
        )

    run(part, batch * parts)
    total = sum_parts(sums).view(width + 1, columns)[:, :channels].to(_sum_dtype(x))
    return dx, total[:width].t().contiguous(), total[width].clone(), dinitial


def _one_step(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """Decoding: a handful of small torch operations, faster than calling compiled code."""
    if initial_state is None:
        initial_state = x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2])
    window = torch.cat([initial_state, x], dim=1)
    dtype = _sum_dtype(x)
    out = (window.to(dtype) * weight.to(dtype).t()).sum(1, keepdim=True)
    if bias is not None:
        out += bias
    if silu:
        out = F.silu(out)
    return out.to(x.dtype), window[:, 1:].clone()


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _rows(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def _weights(x: Tensor, weight: Tensor, bias: Tensor | None) -> np.ndarray:
    """The taps, then the bias, each padded to whole vectors: (width + 1) x padded channels."""
    channels, width = weight.shape
    rows = torch.zeros(width + 1, whole_vectors(channels, _WIDE), dtype=_sum_dtype(x))
    rows[:width, :channels] = weight.t()
    if bias is not None:
        rows[width, :channels] = bias
    return rows.flatten().numpy()


def _starts(segment_ids: Tensor | None, width: int) -> np.ndarray:
    return _NONE if segment_ids is None else run_starts(segment_ids, width - 1).flatten().numpy()


def _share(length: int, channels: int) -> tuple[int, int]:
    """Rows of one part, a multiple of the tile, and the parts of one sequence, at least one."""
    rows = max(1, _PART // (max(channels, 1) * _TILE)) * _TILE
    return rows, max(1, -(-length // rows))


@jit(inner=True)
def _read_inputs(table, b, first, last, column, wide, before, scratch, to):
    """Inputs of times first..last - 1, one row each; before time 0 the initial state, or zeros."""
    old = max(0, min(last, 0) - first)
    if old > 0 and not is_given(table, INITIAL):
        clear(scratch, to, old * _WIDE)
    elif old > 0:
        read_rows(table, INITIAL, b, first + before, old, column, wide, scratch, to, _WIDE)
    new = last - first - old
    read_rows(table, X, b, first + old, new, column, wide, scratch, to + old * _WIDE, _WIDE)


@jit(inner=True)
def _left_out(starts, b, length, time, before):
    """How many of a time's oldest taps lie in earlier segments."""
    if starts.size == 0:
        return 0
    return max(0, starts[b * length + time] - (time - before))


@jit(inner=True)
def _convolved(weights, columns, column, width, skip, scratch, window):
    """A vector of pre-activations; tap k meets the vector in row k of the window."""
    total = load(weights, width * columns + column)
    for k in range(skip, width):
        total = fma(load(weights, k * columns + column), load(scratch, window + k * _WIDE), total)
    return total


@jit
def _forward_part(table, weights, starts, silu, scratch, b, first, last, length, channels, columns):
    width = weights.size // columns - 1
    before = width - 1
    for begin in range(first, last, _TILE):
        end = min(begin + _TILE, last)
        for column in range(0, channels, _WIDE):
            wide = min(_WIDE, channels - column)
            _read_inputs(table, b, begin - before, end, column, wide, before, scratch, 0)
            for i in range(end - begin):
                skip = _left_out(starts, b, length, begin + i, before)
                for c in range(0, wide, LANES):
                    at = i * _WIDE + c
                    y = _convolved(weights, columns, column + c, width, skip, scratch, at)
                    if silu:
                        y = mul(y, sigmoid(y))
                    store(scratch, at, y)  # over the window's oldest row: no longer needed
            write_rows(table, OUT, b, begin, end - begin, column, wide, scratch, 0, _WIDE)


@jit
def _backward_part(
    table, weights, starts, silu, scratch, sums, b, first, last, length, channels, columns
):
    """dx of times first..last - 1 (time 0 brings the initial state's with it); this part's sums.

    An input meets outputs up to width - 1 later, so a tile looks that far into the next one.
    """
    width = weights.size // columns - 1
    before = width - 1
    dtotal = (_TILE + 2 * before) * _WIDE  # place of the pre-activation's gradient
    for begin in range(first, max(last, 1), _TILE):
        end = min(begin + _TILE, last)
        reach = min(end + before, length)
        low = -before if begin == 0 else begin
        for column in range(0, channels, _WIDE):
            wide = min(_WIDE, channels - column)
            _read_inputs(table, b, begin - before, reach, column, wide, before, scratch, 0)
            rows = reach - begin
            read_rows(table, DOUT, b, begin, rows, column, wide, scratch, dtotal, _WIDE)
            for i in range(rows):
                skip = _left_out(starts, b, length, begin + i, before)
                for c in range(0, wide, LANES):
                    at = i * _WIDE + c
                    gradient = load(scratch, dtotal + at)
                    if silu:
                        y = _convolved(weights, columns, column + c, width, skip, scratch, at)
                        s = sigmoid(y)
                        ys = mul(y, s)
                        slope = add(s, sub(ys, mul(ys, s)))
                        gradient = mul(gradient, slope)
                        store(scratch, dtotal + at, gradient)
                    if i < end - begin:
                        for k in range(skip, width):
                            to = k * columns + column + c
                            met = load(scratch, at + k * _WIDE)
                            store(sums, to, fma(gradient, met, load(sums, to)))
                        to = width * columns + column + c
                        store(sums, to, add(gradient, load(sums, to)))
            for time in range(low, end):
                row = (time - low) * _WIDE  # over the inputs, no longer needed
                _input_gradient(
                    weights, columns, column, wide, width, starts, b, length,
                    time, begin, reach, scratch, dtotal, row,
                )  # fmt: skip
                from_final = time - (length - before)
                inside = _left_out(starts, b, length, length - 1, length - 1 - time) == 0
                if is_given(table, DFINAL) and from_final >= 0 and (length == 0 or inside):
                    spare = dtotal + (_TILE + before) * _WIDE
                    read_rows(table, DFINAL, b, from_final, 1, column, wide, scratch, spare, 0)
                    add_row(scratch, row, spare, wide)
            old = begin - low
            if old > 0:
                write_rows(table, DINITIAL, b, 0, old, column, wide, scratch, 0, _WIDE)
            new = end - begin
            write_rows(table, OUT, b, begin, new, column, wide, scratch, old * _WIDE, _WIDE)


@jit(inner=True)
def _input_gradient(
    weights, columns, column, wide, width, starts, b, length,
    time, begin, reach, scratch, dtotal, to,
):  # fmt: skip
    """The sum over the outputs that met an input, of times begin..reach - 1 in dtotal."""
    before = width - 1
    for c in range(0, wide, LANES):
        store(scratch, to + c, zero(scratch))
    for k in range(width):
        met = time + before - k
        if met < begin or met >= reach or k < _left_out(starts, b, length, met, before):
            continue
        row = dtotal + (met - begin) * _WIDE
        for c in range(0, wide, LANES):
            w = load(weights, k * columns + column + c)
            store(scratch, to + c, fma(w, load(scratch, row + c), load(scratch, to + c)))
