"""Root-mean-square norm with residual on the CPU: compiled vectors, a row at a time.

Forward: reads x and the residual and writes the stream and y, once each. Backward: reads the
stream and the gradients and writes dx (and the residual's gradient where its dtype differs), once
each. The weight's gradient is summed by part and the parts added in their order: the same bits for
any number of threads.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mambakernels._numba import jit
from mambakernels._rows import (
    add_row,
    aligned,
    is_given,
    read_rows,
    sum_parts,
    table_of,
    whole_vectors,
    write_rows,
)
from mambakernels._simd import LANES, fma, load, mul, spread, store, sub, zero
from mambakernels._threads import run

_PART = 1 << 18  # elements that one thread takes at a time

X, RESIDUAL, STREAM, Y, DY, DSTREAM_OUT, DX, DSTREAM = range(8)  # rows of the table of tensors


def forward(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, residual_dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """y and the residual stream; None for one that would be x itself."""
    shape, channels = x.shape, x.shape[-1]
    double = torch.float64 in (x.dtype, residual_dtype)
    y = torch.empty(shape, dtype=x.dtype)
    stream = None
    if residual is not None or residual_dtype != x.dtype:
        stream = torch.empty(shape, dtype=residual_dtype)
    if y.numel() == 0:
        return y, stream
    # read again after rounding, so that y is the norm of the stream that is returned
    rounds = stream is not None and residual_dtype != (torch.float64 if double else torch.float32)
    given = [_rows(t) for t in (x, residual, stream, y)]
    table = table_of(*given, None, None, None, None)
    weights = _weights(weight, double)
    rows, share, parts = _share(y)

    def part(i: int) -> None:
        first = i * share
        scratch = aligned(2 * weights.size + 2 * LANES, weights.dtype)
        _forward_rows(
            table, weights, scratch, eps, rounds, first, min(first + share, rows), channels
        )

    run(part, parts)
    return y, stream


def backward(
    dy: Tensor,
    dresidual_out: Tensor | None,
    stream: Tensor,
    weight: Tensor,
    eps: float,
    x_dtype: torch.dtype,
    separate: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx, the weight's gradient, and, if `separate`, the residual's in the stream's dtype."""
    shape, channels = stream.shape, stream.shape[-1]
    double = torch.float64 in (x_dtype, stream.dtype)
    dx = torch.empty(shape, dtype=x_dtype)
    dstream = torch.empty(shape, dtype=stream.dtype) if separate else None
    weights = _weights(weight, double)
    total = torch.zeros(channels)
    if dx.numel() > 0:
        given = [_rows(t) for t in (stream, dy, dresidual_out, dx, dstream)]
        table = table_of(None, None, given[0], None, *given[1:])
        rows, share, parts = _share(dx)
        sums = np.zeros((parts, weights.size), dtype=weights.dtype)

        def part(i: int) -> None:
            first = i * share
            scratch = aligned(2 * weights.size + 2 * LANES, weights.dtype)
            _backward_rows(
                table, weights, scratch, sums[i], eps, first, min(first + share, rows), channels
            )

        run(part, parts)
        total = sum_parts(sums)
    dweight = total[:channels].to(torch.float64 if double else torch.float32)
    return dx, dweight, dstream


def _rows(tensor: Tensor | None) -> Tensor | None:
    """As (1, rows, channels), the channels side by side; a view wherever one exists."""
    if tensor is None:
        return None
    rows = tensor.detach().reshape(1, -1, tensor.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _weights(weight: Tensor, double: bool) -> np.ndarray:
    dtype = torch.float64 if double else torch.float32
    padded_weight = torch.zeros(whole_vectors(weight.numel()), dtype=dtype)
    padded_weight[: weight.numel()] = weight.detach()
    return padded_weight.numpy()


def _share(tensor: Tensor) -> tuple[int, int, int]:
    """All rows, the rows of a part, and the number of parts."""
    channels = tensor.shape[-1]
    count = tensor.numel() // channels
    share = max(1, _PART // channels)
    return count, share, -(-count // share)


@jit(inner=True)
def _sum_of(vector, scratch, spare):
    """The sum of a vector's lanes."""
    store(scratch, spare, vector)
    total = scratch[spare]
    for lane in range(1, LANES):
        total += scratch[spare + lane]
    return total


@jit
def _forward_rows(table, weights, scratch, eps, rounds, first, last, channels):
    size = weights.size
    spare = 2 * size
    for row in range(first, last):
        read_rows(table, X, 0, row, 1, 0, channels, scratch, 0, 0)
        if is_given(table, RESIDUAL):
            read_rows(table, RESIDUAL, 0, row, 1, 0, channels, scratch, size, 0)
            add_row(scratch, 0, size, size)
        if is_given(table, STREAM):
            write_rows(table, STREAM, 0, row, 1, 0, channels, scratch, 0, 0)
            if rounds:
                read_rows(table, STREAM, 0, row, 1, 0, channels, scratch, 0, 0)
        squares = zero(scratch)
        for c in range(0, size, LANES):
            r = load(scratch, c)
            squares = fma(r, r, squares)
        mean = _sum_of(squares, scratch, spare) / channels
        scratch[spare] = 1 / math.sqrt(mean + eps)
        scale = spread(scratch, spare)
        for c in range(0, size, LANES):
            store(scratch, c, mul(mul(load(scratch, c), scale), load(weights, c)))
        write_rows(table, Y, 0, row, 1, 0, channels, scratch, 0, 0)


@jit
def _backward_rows(table, weights, scratch, sums, eps, first, last, channels):
    """With s = 1 / sqrt(mean(r^2) + eps), g = dy weight: dr = s g - r s^3 mean(g r)."""
    size = weights.size
    gradient = size
    spare = 2 * size
    for row in range(first, last):
        read_rows(table, STREAM, 0, row, 1, 0, channels, scratch, 0, 0)
        read_rows(table, DY, 0, row, 1, 0, channels, scratch, gradient, 0)
        squares = zero(scratch)
        products = zero(scratch)
        for c in range(0, size, LANES):
            r = load(scratch, c)
            squares = fma(r, r, squares)
            g = mul(load(scratch, gradient + c), load(weights, c))
            products = fma(g, r, products)
        mean = _sum_of(squares, scratch, spare) / channels
        s = 1 / math.sqrt(mean + eps)
        product = _sum_of(products, scratch, spare)
        scratch[spare] = s
        scratch[spare + 1] = s * s * s * product / channels
        scale, pull = spread(scratch, spare), spread(scratch, spare + 1)
        for c in range(0, size, LANES):
            r = load(scratch, c)
            dy_scaled = mul(load(scratch, gradient + c), scale)
            store(sums, c, fma(dy_scaled, r, load(sums, c)))
            dr = sub(mul(dy_scaled, load(weights, c)), mul(r, pull))
            store(scratch, c, dr)
        if is_given(table, DSTREAM_OUT):
            read_rows(table, DSTREAM_OUT, 0, row, 1, 0, channels, scratch, gradient, 0)
            add_row(scratch, 0, gradient, size)
        write_rows(table, DX, 0, row, 1, 0, channels, scratch, 0, 0)
        if is_given(table, DSTREAM):
            write_rows(table, DSTREAM, 0, row, 1, 0, channels, scratch, 0, 0)
