"""Naive Bayes on canonical k-mers: each k-mer of a window is an independent draw from its class.

``log p(class | window) = sum over k-mers of log(c + alpha) + constant``, where c is how often the
class's training records hold the k-mer, brought to the same total for every class (that of the
smallest). With equal totals the denominators cancel, and so do k-mers that no class holds, so only
those seen are stored, as ``log(1 + c / alpha)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mambabio.alphabet import Ids, N
from mambabio.kmers import INVALID, kmer_codes
from mambabio.store import SequenceStore
from mambabio.windows import WindowBatch

_BLOCK = 1 << 17  # bases coded at a time: temporaries stay in the cache
_BUFFER = 1 << 24  # codes counted at a time


@dataclass(frozen=True, eq=False)
class KmerCounts:
    """How often each class's training records hold each canonical k-mer.

    k: bases. codes: (m,) sorted codes that any class holds. counts: (m, classes).
    """

    k: int
    codes: NDArray[np.int32]
    counts: NDArray[np.unsignedinteger]

    @classmethod
    def of(cls, store: SequenceStore, k: int) -> KmerCounts:
        """Count whole training records. k: 1 to 15."""
        sparse = []
        for label_id in range(len(store.labels)):
            stretches = [store.ids(r) for r in store.select("train") if r.label_id == label_id]
            sparse.append(_count(stretches, k))
        held = np.zeros(4**k, bool)
        for own, _ in sparse:
            held[own] = True
        codes = np.flatnonzero(held)
        row = np.cumsum(held, dtype=np.int32) - 1
        most = max((int(many.max()) for _, many in sparse if len(many)), default=0)
        counts = np.zeros((len(codes), len(sparse)), np.min_scalar_type(most))
        for column, (own, many) in enumerate(sparse):
            counts[row[own], column] = many
        return cls(k, codes.astype(np.int32), counts)


def _count(stretches: Sequence[Ids], k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Codes and how often each occurs."""
    size = 4**k
    total = np.zeros(0, np.int64)
    few: list[NDArray[np.signedinteger]] = []
    for codes in _buffers(stretches, k):
        if len(codes) < size // 16 and not total.size and not few:
            few.append(codes)
            continue
        counted = np.bincount(np.concatenate([*few, codes]), minlength=size)
        total = total + counted if total.size else counted
        few = []
    if few and not total.size:
        found, many = np.unique(few[0], return_counts=True)
        return found.astype(np.int64), many
    found = np.flatnonzero(total)
    return found, total[found]


def _buffers(stretches: Sequence[Ids], k: int) -> Iterator[NDArray[np.signedinteger]]:
    """Canonical codes of all stretches, many at a time; never across two of them."""
    held: list[NDArray[np.signedinteger]] = []
    size = 0
    for block in _blocks(stretches, k):
        codes = kmer_codes(block, k, canonical=True)
        codes = codes[codes != INVALID]
        held.append(codes)
        size += len(codes)
        if size >= _BUFFER:
            yield np.concatenate(held)
            held, size = [], 0
    if held:
        yield np.concatenate(held)


def _blocks(stretches: Sequence[Ids], k: int) -> Iterator[Ids]:
    """Stretches joined by an N, or cut with an overlap of k - 1, to about a block each."""
    between = np.array([N], np.uint8)
    held: list[Ids] = []
    size = 0
    for stretch in stretches:
        for start in range(0, max(len(stretch) - k + 1, 1), _BLOCK):
            piece = stretch[start : start + _BLOCK + k - 1]
            held += [piece, between]
            size += len(piece)
            if size >= _BLOCK:
                yield np.concatenate(held)
                held, size = [], 0
    if held:
        yield np.concatenate(held)


@dataclass(frozen=True, eq=False)
class NaiveBayes:
    """The classifier. counts: from training. alpha: added to each count, above 0."""

    counts: KmerCounts
    alpha: float
    kind: str = field(default="naive Bayes", init=False)

    @property
    def k(self) -> int:
        """Bases of a k-mer."""
        return self.counts.k

    @cached_property
    def _scores(self) -> NDArray[np.float32]:
        """(m + 1, classes): what a k-mer adds; the first row stands for k-mers never seen."""
        counts = self.counts.counts
        totals = counts.sum(axis=0, dtype=np.float64)
        scale = totals[totals > 0].min(initial=np.inf) / np.maximum(totals, 1)
        scores = np.zeros((len(counts) + 1, counts.shape[1]), np.float32)
        np.log1p(counts * (scale / self.alpha).astype(np.float32), out=scores[1:])
        return scores

    @cached_property
    def _place(self) -> NDArray[np.int32]:
        """Row of each code in the scores; 0 for those never seen."""
        place = np.zeros(4**self.k, np.int32)
        place[self.counts.codes] = np.arange(1, len(self.counts.codes) + 1, dtype=np.int32)
        return place

    def scores(self, batch: WindowBatch) -> NDArray[np.float64]:
        """(B, classes) unnormalised log-probabilities."""
        codes = kmer_codes(batch.tokens, self.k, canonical=True)
        rows = self._place[np.maximum(codes, 0)]
        rows[codes == INVALID] = 0
        result = np.zeros((len(rows), self.counts.counts.shape[1]))
        # By stretches, so that the gathered rows stay in the cache.
        for start in range(0, rows.shape[1], 4096):
            gathered = self._scores[rows[:, start : start + 4096]]
            result += gathered.sum(axis=1, dtype=np.float64)
        return result

    def with_alpha(self, alpha: float) -> NaiveBayes:
        """The same counts under another alpha."""
        other = NaiveBayes(self.counts, alpha)
        other.__dict__["_place"] = self._place
        return other

    def to_arrays(self) -> dict[str, NDArray]:
        """What a file needs to hold; codes as differences, which compress."""
        return {
            "k": np.array(self.k),
            "alpha": np.array(self.alpha),
            "codes": np.diff(self.counts.codes, prepend=np.int32(0)),
            "counts": self.counts.counts,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray]) -> NaiveBayes:
        """The classifier from `to_arrays`."""
        codes = np.cumsum(arrays["codes"], dtype=np.int32)
        counts = KmerCounts(int(arrays["k"]), codes, arrays["counts"])
        return cls(counts, float(arrays["alpha"]))
