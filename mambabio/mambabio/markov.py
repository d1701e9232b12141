"""An interpolated Markov model of DNA: the rival of a language model that has only counts.

    P_-1(a) = 1/4
    P_k(a | c) = (max(n(c a) - d_k, 0) + (alpha_k + d_k t(c)) P_{k-1}(a | c')) / (n(c) + alpha_k)

c are the last k bases and c' the last k - 1 of them; n counts k-mers on both strands of the
training sequence, t(c) how many different bases followed c. So a context that was seen often
speaks for itself, and a rare one leaves the word to its shorter suffix. With d = 0 this is the
Dirichlet recursion of MacKay and Peto 1995, with alpha = 0 absolute discounting (Ney, Essen and
Kneser 1994), together the predictive rule of a hierarchical Pitman-Yor process (Teh 2006) whose
restaurants seat one table a base. Each order's alpha and d are those that score the validation
sequence best, the shorter orders' being fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mambabio.alphabet import Ids, reverse_complement
from mambabio.kmers import INVALID, kmer_codes
from mambabio.store import SequenceStore
from mambacore.errors import DataError, UsageError

_BLOCK = 1 << 22
_FITTED = 400_000
_START = (8.0, 0.5)


@dataclass(frozen=True, eq=False)
class MarkovModel:
    """Predicts a base from the bases before it; made by `MarkovModel.fit`.

    counts: for each order k from 0 on, (4^k, 4) how often each base followed each context.
    alphas, discounts: one an order.

    >>> periodic = np.tile(np.array([0, 1, 2, 3], np.uint8), 50)
    >>> model = MarkovModel.fit([periodic], [periodic], order=3)
    >>> bool(np.nanmean(model.bits(periodic)) < 0.2)
    True
    """

    counts: tuple[NDArray[np.uint32], ...]
    alphas: tuple[float, ...]
    discounts: tuple[float, ...]

    @property
    def order(self) -> int:
        """Bases of context at most."""
        return len(self.counts) - 1

    @classmethod
    def fit(
        cls,
        train: Iterable[Ids],
        validation: Sequence[Ids],
        *,
        order: int = 12,
        both_strands: bool = True,
        log: Callable[[str], None] | None = None,
    ) -> MarkovModel:
        """Count the training sequence, then choose each order's weights on validation sequence.

        Args:
            train: stretches of ids; none is joined to the next.
            validation: stretches of ids; of long ones evenly spread parts are used.
            order: bases of context, 0 to 14. Memory is 4/3 x 4^(order + 2) bytes: 340 MiB for 12.
            both_strands: count the reverse complement, too.
            log: called with a line an order.

        Raises:
            UsageError: order out of range.
            DataError: no base to count or to choose on.
        """
        if not 0 <= order <= 14:
            raise UsageError(f"order is {order}; accepted are 0 to 14 bases of context")
        counts = _count(train, order, both_strands)
        chosen = _spread(validation)
        if not counts[0].any() or not any((ids < 4).any() for ids in chosen):
            raise DataError(
                "a Markov model needs A, C, G or T both to count and to choose its weights on"
            )
        alphas: list[float] = []
        discounts: list[float] = []
        before = [np.full(len(ids), 0.25) for ids in chosen]
        for k in range(order + 1):
            places = [_look_up(counts[k], ids, k) for ids in chosen]
            alpha, discount, bits = _weights(places, before, chosen)
            for p, place in zip(before, places, strict=True):
                p[place.at] = _interpolate(p[place.at], place, alpha, discount)
            alphas.append(alpha)
            discounts.append(discount)
            if log:
                log(f"order {k}: {bits:.4f} bits (alpha {alpha:.3g}, discount {discount:.2f})")
        return cls(counts, tuple(alphas), tuple(discounts))

    @classmethod
    def of_store(
        cls,
        store: SequenceStore,
        *,
        order: int = 12,
        both_strands: bool = True,
        log: Callable[[str], None] | None = None,
    ) -> MarkovModel:
        """Fit to a store's training records, its weights to the validation records."""
        train = [store.ids(record) for record in store.select("train")]
        val = [store.ids(record) for record in store.select("val")]
        return cls.fit(train, val, order=order, both_strands=both_strands, log=log)

    def bits(self, ids: Ids) -> NDArray[np.float64]:
        """-log2 of the probability of each base given those before it, at most `order` of them.

        Args:
            ids: (length,) of one stretch.

        Returns:
            (length,) bits; NaN where the base is not A, C, G or T. A context that is cut short,
            by the start or by another letter, counts as far as it reaches.
        """
        p = np.full(len(ids), 0.25)
        for k, (alpha, discount) in enumerate(zip(self.alphas, self.discounts, strict=True)):
            place = _look_up(self.counts[k], ids, k)
            p[place.at] = _interpolate(p[place.at], place, alpha, discount)
        return np.where(ids < 4, -np.log2(p), np.nan)


class _Places(NamedTuple):
    """Positions with a whole context of some order; n(c a), n(c) and t(c) there."""

    at: NDArray[np.int64]
    seen: NDArray[np.float64]
    total: NDArray[np.float64]
    kinds: NDArray[np.float64]


def _count(train: Iterable[Ids], order: int, both: bool) -> tuple[NDArray[np.uint32], ...]:
    """Counts of the longest contexts, and the shorter ones' as sums of them and of what stands
    too near a start to have a longer context."""
    tables = [np.zeros(4 ** (k + 1), np.uint32) for k in range(order + 1)]
    for stretch in train:
        for strand in (stretch, reverse_complement(stretch)) if both else (stretch,):
            for start in range(0, max(len(strand) - order, 1), _BLOCK):
                block = strand[start : start + _BLOCK + order]
                _add(tables[order], kmer_codes(block, order + 1))
            for k in range(order):
                # What the longest contexts miss: where they would reach over a start or a letter.
                _add(tables[k], _short(strand, k, order))
    for k in range(order - 1, -1, -1):
        tables[k] += tables[k + 1].reshape(4, -1).sum(axis=0, dtype=np.uint32)
    return tuple(table.reshape(-1, 4) for table in tables)


def _add(table: NDArray[np.uint32], codes: NDArray) -> None:
    found, many = np.unique(codes[codes != INVALID], return_counts=True)
    table[found] += many.astype(np.uint32)


def _short(ids: Ids, k: int, order: int) -> NDArray:
    """Codes of the k + 1 bases that end where exactly k bases of context stand, k below order."""
    other = np.flatnonzero(ids > 3)
    ends = np.concatenate([[-1], other]) + k + 1
    ends = ends[ends < len(ids)]
    windows = np.minimum(np.maximum(ends[:, None] - k + np.arange(k + 1), 0), len(ids) - 1)
    if not len(ends):
        return np.empty(0, np.int32)
    return kmer_codes(ids[windows], k + 1)[:, 0]


def _look_up(table: NDArray[np.uint32], ids: Ids, k: int) -> _Places:
    codes = kmer_codes(ids, k + 1)
    valid = np.flatnonzero(codes != INVALID)
    codes = codes[valid]
    rows = table[codes >> 2]
    seen = table.reshape(-1)[codes].astype(np.float64)
    total = rows.sum(axis=1, dtype=np.float64)
    kinds = (rows > 0).sum(axis=1).astype(np.float64)
    return _Places(valid + k, seen, total, kinds)


def _interpolate(
    shorter: NDArray[np.float64], place: _Places, alpha: float, discount: float
) -> NDArray[np.float64]:
    # A count is 0 or at least 1, so a discount below 1 takes away exactly discount x kinds.
    own = np.maximum(place.seen - discount, 0.0)
    return (own + (alpha + discount * place.kinds) * shorter) / (place.total + alpha)


def _weights(
    places: list[_Places], before: list[NDArray[np.float64]], chosen: list[Ids]
) -> tuple[float, float, float]:
    """(alpha, discount, bits a base) that score the chosen sequence best."""
    from scipy.optimize import minimize

    shorter = np.concatenate([p[place.at] for p, place in zip(before, places, strict=True)])
    joined = _Places(*(np.concatenate(column) for column in zip(*places, strict=True)))
    bases = sum(int((ids < 4).sum()) for ids in chosen)
    fixed = sum(
        float(np.log2(p[ids < 4]).sum()) for p, ids in zip(before, chosen, strict=True)
    ) - float(np.log2(shorter).sum())

    def weights(x: NDArray[np.float64]) -> tuple[float, float]:
        x = np.clip(x, -20, 20)
        return float(np.exp(x[0])), float(1 / (1 + np.exp(-x[1])))

    def bits(x: NDArray[np.float64]) -> float:
        return -(float(np.log2(_interpolate(shorter, joined, *weights(x))).sum()) + fixed) / bases

    start = np.array([np.log(_START[0]), np.log(_START[1] / (1 - _START[1]))])
    steps = start + np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    options = {"maxfev": 60, "xatol": 0.05, "fatol": 1e-6, "initial_simplex": steps}
    found = minimize(bits, start, method="Nelder-Mead", options=options)
    return *weights(found.x), bits(found.x)


def _spread(validation: Sequence[Ids]) -> list[Ids]:
    """Parts of the stretches, about `_FITTED` bases, evenly over all."""
    total = sum(len(ids) for ids in validation)
    if total <= _FITTED:
        return [np.asarray(ids) for ids in validation if len(ids)]
    piece = 4096
    every = -(-total // _FITTED)
    parts = [ids[s : s + piece] for ids in validation for s in range(0, len(ids), piece)]
    return parts[::every]
