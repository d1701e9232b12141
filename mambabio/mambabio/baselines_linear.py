"""A linear classifier on k-mer frequencies: standardised, multinomial logistic regression."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mambabio.kmers import INVALID, kmer_codes
from mambabio.windows import WindowBatch, WindowSet

_BATCH = 64
_ITERATIONS = 60
_TOLERANCE = 1e-2  # of the gradient; tighter ones change no figure in the third digit


def _strand_pairs(k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Canonical k-mers and their reverse complements, as codes."""
    codes = np.arange(4**k)
    bases = ((codes[:, None] >> (2 * np.arange(k - 1, -1, -1))) & 3).astype(np.uint8)
    other = kmer_codes(3 - bases[:, ::-1], k)[:, 0].astype(np.int64)
    canonical = np.flatnonzero(codes <= other)
    return canonical, other[canonical]


def kmer_frequencies(batch: WindowBatch, k: int) -> NDArray[np.float32]:
    """(B, 4^k) share of each k-mer among a window's valid ones; zeros where it has none."""
    size = 4**k
    codes = kmer_codes(batch.tokens, k).astype(np.int64)
    codes[codes == INVALID] = size
    codes += np.arange(len(codes))[:, None] * (size + 1)
    counts = np.bincount(codes.ravel(), minlength=len(codes) * (size + 1))
    counts = counts.reshape(-1, size + 1)[:, :size]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shares.astype(np.float32)


def window_frequencies(windows: WindowSet, k: int) -> NDArray[np.float32]:
    """(n, 4^k) of all windows of a set."""
    out = np.empty((len(windows), 4**k), np.float32)
    for start in range(0, len(out), _BATCH):
        batch = windows.batch(slice(start, start + _BATCH))
        out[start : start + _BATCH] = kmer_frequencies(batch, k)
    return out


def fold_strands(frequencies: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """(n, canonical k-mers): a k-mer's share and its reverse complement's, added."""
    canonical, other = _strand_pairs(k)
    # A palindrome is its own other strand and would be added to itself.
    twice = (other != canonical).astype(np.float32)
    return frequencies[:, canonical] + frequencies[:, other] * twice


@dataclass(frozen=True, eq=False)
class LinearKmers:
    """The fitted classifier. weights: (features, classes). bias: (classes,).

    k: bases. canonical: whether features are folded. The standardisation is in the weights.
    """

    k: int
    canonical: bool
    weights: NDArray[np.float32]
    bias: NDArray[np.float64]
    kind: str = field(default="linear", init=False)

    @classmethod
    def fit(
        cls,
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        classes: int,
        *,
        k: int,
        canonical: bool,
        strength: float,
    ) -> LinearKmers:
        """Fit with classes weighted equally.

        features: (n, 4^k), or folded where `canonical`. labels: (n,). strength: scikit-learn's C,
        the inverse of the penalty. A class without windows is never predicted.
        """
        from sklearn.linear_model import LogisticRegression

        mean, scale = features.mean(axis=0), features.std(axis=0)
        scale[scale == 0] = 1
        standard = (features - mean) / scale
        model = LogisticRegression(
            C=strength, max_iter=_ITERATIONS, tol=_TOLERANCE, class_weight="balanced"
        )
        with warnings.catch_warnings():
            # Stopping at the iteration limit is intended.
            warnings.simplefilter("ignore")
            model.fit(standard, labels)
        coefficients, intercept = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # scikit-learn keeps one row for two classes
            coefficients = np.concatenate([-coefficients, coefficients]) / 2
            intercept = np.concatenate([-intercept, intercept]) / 2
        weights = np.zeros((features.shape[1], classes), np.float32)
        bias = np.full(classes, -np.inf)
        weights[:, model.classes_] = (coefficients / scale).T
        bias[model.classes_] = intercept - coefficients @ (mean / scale)
        return cls(k, canonical, weights, bias)

    def scores_of(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n, classes) unnormalised log-probabilities of features as in `fit`."""
        return features @ self.weights + self.bias

    def scores(self, batch: WindowBatch) -> NDArray[np.float64]:
        """(B, classes) unnormalised log-probabilities."""
        features = kmer_frequencies(batch, self.k)
        return self.scores_of(fold_strands(features, self.k) if self.canonical else features)

    def to_arrays(self) -> dict[str, NDArray]:
        """What a file needs to hold."""
        return {
            "k": np.array(self.k),
            "canonical": np.array(self.canonical),
            "weights": self.weights,
            "bias": self.bias,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray]) -> LinearKmers:
        """The classifier from `to_arrays`."""
        return cls(int(arrays["k"]), bool(arrays["canonical"]), arrays["weights"], arrays["bias"])
