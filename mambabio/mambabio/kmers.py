"""k-mers as integers: two bits a base, the first base in the highest bits."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mambacore.errors import UsageError

Codes: TypeAlias = NDArray[np.signedinteger[Any]]

INVALID = -1


def kmer_codes(ids: NDArray[np.uint8], k: int, *, canonical: bool = False) -> Codes:
    """The code of the k-mer that starts at each position.

    ``code = sum_j id[i + j] 4^(k - 1 - j)``; with ``canonical`` the smaller of it and the code of
    the reverse complement, so that both strands of a sequence give the same codes. Built by
    doubling (a 12-mer from an 8-mer and a 4-mer), in log2(k) passes over the sequence.

    Args:
        ids: (..., n) token ids; A, C, G, T are 0 to 3. Rows are independent.
        k: 1 to 31 bases.
        canonical: fold the strands.

    Returns:
        (..., max(n - k + 1, 0)) codes, int32 for k up to 15 and int64 above; -1 where the k-mer
        holds anything but A, C, G, T (an N, an ambiguity code, padding).

    Raises:
        UsageError: k out of range.

    Example:
        >>> kmer_codes(np.array([0, 1, 2, 3], np.uint8), 2)  # AC, CG, GT
        array([ 1,  6, 11], dtype=int32)
        >>> kmer_codes(np.array([0, 1, 2, 3], np.uint8), 2, canonical=True)  # GT is AC's
        array([1, 6, 1], dtype=int32)
    """
    if not 1 <= k <= 31:
        raise UsageError(f"k is {k}; accepted are 1 to 31 bases")
    dtype = np.int32 if k <= 15 else np.int64
    n = ids.shape[-1] - k + 1
    if n <= 0:
        return np.empty((*ids.shape[:-1], 0), dtype)
    invalid = ids > 3
    some_invalid = bool(invalid.any())
    bases = (ids & 3).astype(dtype) if some_invalid else ids.astype(dtype)
    codes = _join(bases, k, forward=True)
    if canonical:
        np.minimum(codes, _join(3 - bases, k, forward=False), out=codes)
    if some_invalid:
        before = np.zeros((*ids.shape[:-1], ids.shape[-1] + 1), np.int32)
        np.cumsum(invalid, axis=-1, out=before[..., 1:])
        codes[before[..., k:] != before[..., :-k]] = INVALID
    return codes


def _join(bases: Codes, k: int, *, forward: bool) -> Codes:
    """Codes of k bases from powers of two of them; reversed order when not `forward`."""
    power, size = bases, 1
    codes, done = None, 0
    while True:
        if k & size:
            if codes is None:
                codes = power.copy()
            else:
                codes = _concatenate(codes, done, power, size, forward)
            done += size
        if 2 * size > k:
            break
        power = _concatenate(power, size, power, size, forward)
        size *= 2
    assert codes is not None
    return codes


def _concatenate(left: Codes, m: int, right: Codes, n: int, forward: bool) -> Codes:
    """Codes of m + n bases from those of m bases and, m positions on, those of n bases."""
    length = right.shape[-1] - m
    first, second = left[..., :length], right[..., m:]
    return (first << (2 * n)) | second if forward else (second << (2 * m)) | first


def mix64(codes: Codes | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A 64-bit mixing of k-mer codes (the finaliser of SplitMix64, Steele et al. 2014).

    A bijection whose output bits are near enough independent of the code's, so that "the smallest
    values" are a random sample of k-mers and a sum of them a fingerprint.

    >>> len(set(mix64(np.arange(1000)).tolist()))
    1000
    """
    z = codes.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
