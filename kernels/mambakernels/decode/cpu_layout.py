"""How a model of several rates lies in memory for compiled decoding.

Three flat arrays hold everything: `weights` and `state` (float32), `wide_weights` and `wide_state`
(float64, for the complex time-invariant mixers). Tables of integers say where. Every vector is
padded with zeros to a multiple of 16 numbers, `whole_vectors`.

A linear map (outputs, inputs) lies as panels of 128, 64 or 16 outputs, each (inputs, panel), so
that a product with one vector reads memory once, from front to back (`pack_linear`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAMBA, DIAGONAL = range(2)  # kinds of block

# Columns of the table of blocks. Offsets count numbers in `weights` or, for states, in a row of
# `state`; those of a diagonal mixer's system lie in the wide arrays.
(
    KIND, WIDTH, INNER, STATES, RANK, TAPS, NORM, IN, IN_BIAS, CONV, CONV_BIAS, SELECT, DELTA,
    DELTA_BIAS, RATES, SKIP, OUT, OUT_BIAS, CONV_STATE, SSM_STATE, HIDDEN, NORM2, FC1, FC2,
    BLOCK_COLUMNS,
) = range(25)  # fmt: skip

# Columns of the table of levels: blocks on the way down and up, pooling, what is carried.
(
    LEVEL_WIDTH, POOL, DOWN, DOWN_COUNT, UP, UP_COUNT, POOL_DOWN, POOL_DOWN_BIAS, POOL_UP,
    POOL_UP_BIAS, PENDING, FRAME, LEVEL_COLUMNS,
) = range(13)  # fmt: skip

# Entries of the model's own table.
EMBEDDING, INPUTS, FINAL_NORM, HEAD, HEAD_BIAS, SYMBOLS, PHASES, CONDITION, END, MODEL_COLUMNS = (
    range(10)
)

PANELS = (128, 64, 16)


def whole_vectors(count: int) -> int:
    """`count` rounded up to a multiple of 16."""
    return -(-count // 16) * 16


def pack_linear(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(outputs, inputs) as panels; outputs are padded with zeros to whole vectors."""
    outputs, inputs = weight.shape
    columns = np.zeros((inputs, whole_vectors(outputs)), np.float32)
    columns[:, :outputs] = weight.T
    panels, first = [], 0
    for width in PANELS:
        while columns.shape[1] - first >= width:
            panels.append(columns[:, first : first + width].ravel())
            first += width
    return np.concatenate(panels)
