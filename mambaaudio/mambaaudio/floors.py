"""Bits per sample that need no neural network: symbol counts, pairs, adaptive linear prediction.

A model is judged beside these, on the same codes. Every floor is used as
``floor.stream()(codes) -> bits``: a stream takes a recording's codes in any chunks, in order, and
returns float64 (samples,), the bits that each sample costs given all before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mambaaudio.codes import code as find_code
from mambacore.errors import DataError, UsageError

Codes = NDArray[np.integer]
Stream = Callable[[Codes], NDArray[np.float64]]


class Floor(Protocol):
    """What every floor offers."""

    @property
    def name(self) -> str: ...

    def stream(self) -> Stream:
        """A function of consecutive chunks of one recording's codes."""
        ...


def bits(floor: Floor, codes: Codes) -> NDArray[np.float64]:
    """Bits of each sample of one whole recording."""
    return floor.stream()(codes)


def _by_sample(codes: Codes, width: int) -> NDArray[np.int64]:
    """(samples, symbols per sample)."""
    if codes.ndim != 1 or len(codes) % width:
        raise UsageError(
            f"codes have shape {codes.shape}; a floor takes whole samples of {width} symbol(s) "
            "each, in one dimension"
        )
    return codes.astype(np.int64).reshape(-1, width)


@dataclass(frozen=True, eq=False)
class Unigram:
    """Symbol frequencies of the training codes; unseen symbols get add-one smoothing.

    >>> floor = Unigram.fit([np.array([0, 0, 0, 1])], "mulaw8")
    >>> round(float(bits(floor, np.array([0]))[0]), 2)  # 4 of 4 + 256
    6.02
    """

    code: str
    cost: NDArray[np.float64]
    """(symbols per sample, symbols) bits."""

    name = "unigram"

    @classmethod
    def fit(cls, recordings: Iterable[Codes], code: str) -> Unigram:
        """Count. Raises DataError when there are no samples."""
        of = find_code(code)
        counts = np.zeros((of.symbols_per_sample, of.symbols))
        for codes in recordings:
            for phase, symbols in enumerate(_by_sample(codes, of.symbols_per_sample).T):
                counts[phase] += np.bincount(symbols, minlength=of.symbols)
        _require_samples(counts)
        share = (counts + 1) / (counts + 1).sum(axis=1, keepdims=True)
        return cls(code, -np.log2(share))

    def stream(self) -> Stream:
        def feed(codes: Codes) -> NDArray[np.float64]:
            symbols = _by_sample(codes, len(self.cost))
            return sum((c[s] for c, s in zip(self.cost, symbols.T, strict=True)), np.zeros(()))

        return feed


@dataclass(frozen=True, eq=False)
class Bigram:
    """Frequencies given the previous sample's symbol, smoothed by the unigram.

    p(b | a) = (n(a, b) + p(b)) / (n(a) + 1). Of a two-byte code, the coarse byte is given the
    previous coarse byte and the fine byte its own coarse byte. The first sample of a recording
    costs its unigram bits.
    """

    code: str
    unigram: Unigram
    cost: NDArray[np.float64]
    """(symbols per sample, symbol before, symbol) bits."""

    name = "bigram"

    @classmethod
    def fit(cls, recordings: Iterable[Codes], code: str) -> Bigram:
        """Count pairs. Raises DataError when there are no samples."""
        of = find_code(code)
        counts = np.zeros((of.symbols_per_sample, of.symbols, of.symbols))
        single = np.zeros((of.symbols_per_sample, of.symbols))
        for codes in recordings:
            symbols = _by_sample(codes, of.symbols_per_sample)
            for phase, column in enumerate(symbols.T):
                single[phase] += np.bincount(column, minlength=of.symbols)
                before, after = _pairs(symbols, phase)
                pair = before * of.symbols + after
                counts[phase] += np.bincount(pair, minlength=of.symbols**2).reshape(
                    of.symbols, of.symbols
                )
        _require_samples(single)
        prior = (single + 1) / (single + 1).sum(axis=1, keepdims=True)
        share = (counts + prior[:, None]) / (counts.sum(axis=2, keepdims=True) + 1)
        return cls(code, Unigram(code, -np.log2(prior)), -np.log2(share))

    def stream(self) -> Stream:
        last: list[NDArray[np.int64]] = []

        def feed(codes: Codes) -> NDArray[np.float64]:
            symbols = _by_sample(codes, len(self.cost))
            out = np.zeros(len(symbols))
            if not len(symbols):
                return out
            known = np.concatenate([*last, symbols])
            for phase, cost in enumerate(self.cost):
                before, after = _pairs(known, phase)
                paid = cost[before, after]
                out[len(out) - len(paid[-len(out) :]) :] += paid[-len(out) :]
            if not last:
                out[0] += self.unigram.cost[0, symbols[0, 0]]
            last[:] = [symbols[-1:]]
            return out

        return feed


def _pairs(symbols: NDArray[np.int64], phase: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if phase:
        return symbols[:, phase - 1], symbols[:, phase]
    return symbols[:-1, 0], symbols[1:, 0]


def _require_samples(counts: NDArray[np.float64]) -> None:
    if not counts.sum():
        raise DataError("there are no training samples to count symbols in")


@dataclass(frozen=True)
class LinearPrediction:
    """Adaptive linear prediction: what signal processing alone knows about the next sample.

    Every `refit` samples, the coefficients are fitted by least squares (covariance method) to the
    past `window` decoded samples. The prediction's error is taken as a mixture of logistic
    distributions of five widths around the running mean error, their weights following how well
    each did lately; a code's probability is the mixture's mass between the edges of its bin.

    Args:
        code: name of the code.
        order: coefficients.
        window: past samples that they are fitted to.
        refit: samples between two fits.
        memory: samples over which the mean error is averaged (exponentially).

    The defaults give the piano figure that the data's description states for order 32 over 2,048
    samples. A shorter memory makes it a harder floor: 20 samples and a fit every 64 take about
    0.07 bits off.
    """

    code: str = "mulaw8"
    order: int = 32
    window: int = 2048
    refit: int = 256
    memory: float = 2048.0

    name = "linear prediction"

    def __post_init__(self) -> None:
        find_code(self.code)
        if not 1 <= self.order < self.window:
            raise UsageError(
                f"order is {self.order}, window {self.window}; the order must be at least 1 and "
                "below the window"
            )
        if self.refit < 1 or self.memory < 1:
            raise UsageError(
                f"refit is {self.refit}, memory {self.memory}; both must be at least 1 sample"
            )

    @classmethod
    def for_rate(cls, code: str, rate: int) -> LinearPrediction:
        """Order 32 for music at 12 kHz and above; order 16 and short windows for speech below."""
        if rate >= 12_000:
            return cls(code)
        return cls(code, order=16, window=256, refit=16, memory=10)

    def stream(self) -> Stream:
        from mambaaudio.floors_kernel import FACTORS, predict

        of = find_code(self.code)
        values, edges = bins(self.code)
        history = np.zeros(self.window + self.order)
        coefficients = np.zeros(self.order)
        coefficients[0] = 1.0
        log_weights = np.zeros(len(FACTORS))
        running = np.array([0.05])  # mean absolute error, full scale 1
        position = [0]

        def feed(codes: Codes) -> NDArray[np.float64]:
            nonlocal history
            symbols = _by_sample(codes, of.symbols_per_sample)
            index = symbols[:, 0] if symbols.shape[1] == 1 else symbols @ np.array([256, 1])
            samples = np.concatenate([history, values[index]])
            out = np.empty(len(index))
            predict(
                samples, index, edges, position[0], self.order, self.window, self.refit,
                1 - 1 / self.memory, coefficients, log_weights, running, out,
            )  # fmt: skip
            position[0] += len(index)
            history = samples[len(index) :].copy()
            return out

        return feed


def bins(code: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Decoded value of each bin (n,) and the edges between them (n + 1,), the outer ones infinite.

    The bins of a two-byte code are its 65,536 pairs.
    """
    name = find_code(code).name
    if name == "mulaw8":
        centre, edge = np.arange(256.0), np.arange(257) - 0.5
        values, edges = _expand(2 * centre / 255 - 1), _expand(2 * edge / 255 - 1)
    else:
        count = 256 if name == "linear8" else 65536
        half = count // 2
        values, edges = (np.arange(count) - half) / half, (np.arange(count + 1) - half - 0.5) / half
    edges[0], edges[-1] = -math.inf, math.inf
    return values, edges


def _expand(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of mu-law companding, mu = 255."""
    return np.sign(y) * np.expm1(np.abs(y) * math.log1p(255)) / 255


def fit_floors(recordings: Iterable[Codes], code: str, rate: int) -> tuple[Floor, ...]:
    """All floors for a code: counts from the training recordings, linear prediction by rate."""
    bigram = Bigram.fit(recordings, code)
    return bigram.unigram, bigram, LinearPrediction.for_rate(code, rate)
