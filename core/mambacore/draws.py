"""Random numbers as a function of (seed, step, row), so that nothing is remembered for a resume."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DRAWS = 4  # Philox makes four 64-bit numbers a counter: one counter a row


def draws(seed: int, step: int, first_row: int, rows: int) -> NDArray[np.uint64]:
    """(rows, 4) random 64-bit numbers; those of a row depend on (seed, step, row) alone.

    They are Philox's at the counter (row, step) under the seed as key.

    >>> bool((draws(1, 5, 2, 3)[1] == draws(1, 5, 3, 1)[0]).all())
    True
    """
    generator = np.random.Philox(key=seed % (1 << 128), counter=[first_row, step, 0, 0])
    return generator.random_raw(rows * DRAWS).reshape(rows, DRAWS)


def unit(numbers: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Random 64-bit numbers as uniform ones in [0, 1), of 53 bits each."""
    return (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(numbers: NDArray[np.uint64], limit: NDArray[np.int64]) -> NDArray[np.int64]:
    """Uniform integers from 0 to limit - 1; 53 random bits, so the limit stays far below 2^53."""
    return np.minimum((unit(numbers) * limit).astype(np.int64), limit - 1)
