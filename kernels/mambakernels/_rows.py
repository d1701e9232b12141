"""Rows of channels between tensors of any dtype and a kernel's scratch memory (convolution, norm).

A tensor is described to compiled code by a row of integers in a table, so that one compilation
serves every dtype and every layout whose channels lie side by side.
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

KINDS = {  # the number that stands for a dtype in compiled code
    torch.float32: FLOAT32,
    torch.float64: FLOAT64,
    torch.bfloat16: BFLOAT16,
    torch.float16: FLOAT16,
}
_ADDRESS, _KIND, _BATCH_STRIDE, _ROW_STRIDE = range(4)


def table_of(*tensors: Tensor | None) -> np.ndarray:
    """The table of (batch, rows, channels) tensors; an absent one has address 0.

    The caller keeps the tensors alive while compiled code runs.
    """
    described = [
        (0, 0, 0, 0) if t is None else (t.data_ptr(), KINDS[t.dtype], t.stride(0), t.stride(1))
        for t in tensors
    ]
    return np.array(described, dtype=np.int64)


def aligned(count: int, dtype: np.dtype) -> np.ndarray:
    """Uninitialised memory that starts on a cache line, so that no vector straddles two."""
    memory = np.empty(count * dtype.itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + count * dtype.itemsize].view(dtype)


def whole_vectors(count: int, lanes: int = LANES) -> int:
    """`count` rounded up to a multiple of `lanes`."""
    return -(-count // lanes) * lanes


@jit(inner=True)
def is_given(table, which):
    return table[which, _ADDRESS] != 0


@jit(inner=True)
def clear(scratch, to, count):
    """Zeros in `count` numbers, a multiple of 16."""
    for k in range(0, count, LANES):
        store(scratch, to + k, zero(scratch))


@jit(inner=True)
def read_rows(table, which, batch, first, rows, column, width, scratch, to, to_row):
    """Rows first.. and `width` columns, padded with zeros to whole vectors."""
    stay_apart()
    address = table[which, _ADDRESS]
    kind = table[which, _KIND]
    start = batch * table[which, _BATCH_STRIDE] + column
    ahead = rows * table[which, _ROW_STRIDE]  # the next rows are fetched while these are read
    for i in range(rows):
        row = start + (first + i) * table[which, _ROW_STRIDE]
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
def write_rows(table, which, batch, first, rows, column, width, scratch, at, at_row):
    """The way back, rounded to the tensor's dtype; nothing beyond `width` columns is touched."""
    stay_apart()
    address = table[which, _ADDRESS]
    kind = table[which, _KIND]
    start = batch * table[which, _BATCH_STRIDE] + column
    ahead = rows * table[which, _ROW_STRIDE]  # the next rows are fetched while these are read
    for i in range(rows):
        row = start + (first + i) * table[which, _ROW_STRIDE]
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
def add_row(scratch, to, at, count):
    """scratch[to..] += scratch[at..], `count` numbers, a multiple of 16 or padded to one."""
    for c in range(0, count, LANES):
        store(scratch, to + c, add(load(scratch, to + c), load(scratch, at + c)))


@jit
def _add_in_order(sums, total):
    for i in range(sums.shape[0]):
        for k in range(total.size):
            total[k] += sums[i, k]


def sum_parts(sums: np.ndarray) -> Tensor:
    """The sum of the parts' rows in their order, in float64: the bits do not depend on threads."""
    total = np.zeros(sums.shape[1])
    _add_in_order(sums, total)
    return torch.from_numpy(total)
