"""Pieces of both CPU kernels: tiles of a few steps by 16 channels, in the state's dtype.

A tensor is described to compiled code by a row of integers, so that one compilation serves every
dtype and layout: its address (0 when absent), its kind, the strides of batch and step in elements.
All scratch memory of a task is one array; `to`, `at`, ... are places in it. A tile holds steps in
the order of the scan: with `reverse` the first row is the last step.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mambakernels._numba import jit
from mambakernels._simd import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    LANES,
    add,
    get,
    load,
    put,
    stay_apart,
    store,
    zero,
)

KINDS = {
    torch.float32: FLOAT32,
    torch.float64: FLOAT64,
    torch.bfloat16: BFLOAT16,
    torch.float16: FLOAT16,
}
ADDRESS, KIND, BATCH_STRIDE, STEP_STRIDE = range(4)


def describe(t: Tensor | None) -> tuple[int, int, int, int]:
    """The row of integers for a tensor (batch, length, columns) whose columns have stride 1."""
    if t is None:
        return 0, 0, 0, 0
    return t.data_ptr(), KINDS[t.dtype], t.stride(0), t.stride(1)


def aligned(count: int, dtype: np.dtype) -> np.ndarray:
    """Uninitialised memory that starts on a cache line, so that no vector straddles two."""
    memory = np.empty(count * dtype.itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + count * dtype.itemsize].view(dtype)


@jit
def padded(count, to):
    return (count + to - 1) // to * to


@jit(inner=True)
def read_tile(
    table, which, batch, first, step, rows, next_tile, column, width, scratch, to, to_row
):  # fmt: skip
    """Rows first, first + step, ... and `width` columns, padded with zeros to whole vectors.

    next_tile: how many rows further the caller will ask for more.
    """
    stay_apart()
    address = table[which, ADDRESS]
    kind = table[which, KIND]
    stride = table[which, STEP_STRIDE]
    start = batch * table[which, BATCH_STRIDE] + column
    ahead = next_tile * stride
    for i in range(rows):
        row = start + (first + step * i) * stride
        for c in range(0, width, LANES):
            if kind == FLOAT32:
                vector = get(address, row + c, width - c, FLOAT32, ahead, scratch)
            elif kind == BFLOAT16:
                vector = get(address, row + c, width - c, BFLOAT16, ahead, scratch)
            elif kind == FLOAT16:
                vector = get(address, row + c, width - c, FLOAT16, ahead, scratch)
            else:
                vector = get(address, row + c, width - c, FLOAT64, ahead, scratch)
            store(scratch, to + i * to_row + c, vector)


@jit(inner=True)
def write_tile(
    table, which, batch, first, step, rows, next_tile, column, width, scratch, at, at_row
):  # fmt: skip
    """The way back, rounded to the tensor's dtype; nothing beyond `width` columns is touched."""
    stay_apart()
    address = table[which, ADDRESS]
    kind = table[which, KIND]
    stride = table[which, STEP_STRIDE]
    start = batch * table[which, BATCH_STRIDE] + column
    ahead = next_tile * stride
    for i in range(rows):
        row = start + (first + step * i) * stride
        for c in range(0, width, LANES):
            vector = load(scratch, at + i * at_row + c)
            if kind == FLOAT32:
                put(address, row + c, width - c, FLOAT32, ahead, vector)
            elif kind == BFLOAT16:
                put(address, row + c, width - c, BFLOAT16, ahead, vector)
            elif kind == FLOAT16:
                put(address, row + c, width - c, FLOAT16, ahead, vector)
            else:
                put(address, row + c, width - c, FLOAT64, ahead, vector)


@jit(inner=True)
def read_channels(flat, start, states, lanes, scratch, to):
    """Of a flat (channels, n) matrix from number `start`: 16 channels side by side for each n."""
    stay_apart()
    for n in range(states):
        store(scratch, to + n * LANES, zero(scratch))
        for lane in range(lanes):
            scratch[to + n * LANES + lane] = flat[start + lane * states + n]


@jit(inner=True)
def write_channels(flat, start, states, lanes, scratch, at):
    stay_apart()
    for n in range(states):
        for lane in range(lanes):
            flat[start + lane * states + n] = scratch[at + n * LANES + lane]


@jit(inner=True)
def clear(scratch, to, count):
    """Zeros in `count` numbers, a multiple of 16."""
    for k in range(0, count, LANES):
        store(scratch, to + k, zero(scratch))


@jit(inner=True)
def accumulate(scratch, to, at, count):
    for k in range(0, count, LANES):
        store(scratch, to + k, add(load(scratch, to + k), load(scratch, at + k)))
