"""How much of one sequence stands in others, by the 31-mers they share.

Containment of two k-mer sets: ``|A and B| / min(|A|, |B|)``. It is estimated from FracMinHash
sketches (Irber et al. 2022, doi:10.1101/2022.01.11.475838): of all k-mers those whose hash falls
below 1/scale of the range, the same ones in every sequence; then checked on the whole sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mambabio.alphabet import Ids
from mambabio.kmers import INVALID, kmer_codes, mix64

K = 31
_PIECE = 1 << 18
_SKETCH_TOTAL = 5_000_000
_LARGEST_SCALE = 1000
_SLACK = 0.06  # estimates this far below the threshold are still checked
_ROWS = 256


class Shared(NamedTuple):
    """Two sequences, by place, and the part of the smaller one's 31-mers that both have."""

    one: int
    other: int
    containment: float


def kmer_hashes(ids: Ids, scale: int = 1) -> NDArray[np.uint64]:
    """Sorted distinct hashes of the canonical 31-mers, or of one in `scale` of them."""
    limit = np.uint64((1 << 64) // scale - 1)
    parts = []
    for start in range(0, max(len(ids) - K + 1, 0), _PIECE):
        codes = kmer_codes(ids[start : start + _PIECE + K - 1], K, canonical=True)
        hashes = mix64(codes[codes != INVALID])
        parts.append(hashes[hashes <= limit] if scale > 1 else hashes)
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64)


def containment(one: Ids, other: Ids) -> float:
    """Part of the smaller set of canonical 31-mers that the other has too; 0 where one is empty.

    Example:
        >>> ids = np.random.default_rng(0).integers(0, 4, 1000).astype(np.uint8)
        >>> containment(ids, ids[200:700])
        1.0
    """
    first, second = kmer_hashes(one), kmer_hashes(other)
    smaller = min(len(first), len(second))
    if smaller == 0:
        return 0.0
    return len(np.intersect1d(first, second, assume_unique=True)) / smaller


def contained_pairs(
    sequences: Sequence[Callable[[], Ids]], lengths: Sequence[int], threshold: float = 0.9
) -> Iterator[Shared]:
    """All pairs whose containment is above a threshold.

    Args:
        sequences: functions that read a sequence, called when it is needed.
        lengths: their bases, which decide how many 31-mers are sampled.
        threshold: 0 to 1.

    Yields:
        Pairs with one < other, and their exact containment.
    """
    from scipy.sparse import csr_array

    scale = int(np.clip(sum(lengths) / _SKETCH_TOTAL, 1, _LARGEST_SCALE))
    sketches = [kmer_hashes(read(), scale) for read in sequences]
    sizes = np.array([len(sketch) for sketch in sketches])
    if sizes.sum() == 0:
        return
    _, column = np.unique(np.concatenate(sketches), return_inverse=True)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    held = csr_array(
        (np.ones(len(column), np.float32), column.ravel(), starts),
        shape=(len(sketches), int(column.max()) + 1),
    )
    across = held.T.tocsr()
    exact = _Hashes(sequences)
    for first in range(0, len(sketches), _ROWS):
        shared = (held[first : first + _ROWS] @ across).tocoo()
        one, other = shared.row + first, shared.col
        smaller = np.minimum(sizes[one], sizes[other])
        likely = (one < other) & (shared.data >= (threshold - _SLACK) * smaller)
        for a, b in zip(one[likely].tolist(), other[likely].tolist(), strict=True):
            value = exact.containment(a, b)
            if value > threshold:
                yield Shared(a, b, value)


class _Hashes:
    """Whole 31-mer sets, the latest kept: pairs come sorted by their first."""

    def __init__(self, sequences: Sequence[Callable[[], Ids]]) -> None:
        self._sequences = sequences
        self._place = -1
        self._kept = np.empty(0, np.uint64)

    def containment(self, one: int, other: int) -> float:
        if one != self._place:
            self._place, self._kept = one, kmer_hashes(self._sequences[one]())
        second = kmer_hashes(self._sequences[other]())
        smaller = min(len(self._kept), len(second))
        if smaller == 0:
            return 0.0
        return len(np.intersect1d(self._kept, second, assume_unique=True)) / smaller
