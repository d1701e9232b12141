"""How far a set of generated clips is from real ones, in the eyes of a classifier.

With p(y | x) a classifier's probabilities and f(x) its features, over clips x of a set:

- FID (Heusel et al. 2017): |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), means and covariances of
  f over generated and reference clips; 0 for equal sets.
- IS (Salimans et al. 2016): exp E KL(p(y | x) || p(y)), from 1 to the number of classes; high when
  clips are clear and classes even.
- mIS (Gurumurthy et al. 2017): exp E KL(p(y | x) || p(y | x')) over all pairs; also sees whether
  clips of a class differ. It has no upper end: probabilities are kept above 1e-16.
- AM (Zhou et al. 2018): KL(p_reference(y) || p(y)) + E H(p(y | x)); 0 is best.

A figure has a meaning only beside the same figure of real clips that the reference does not hold.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambaaudio.digits import Heard
from mambacore.errors import DataError

Array = NDArray[np.float64]
_LEAST = 1e-16


@dataclass(frozen=True)
class Distances:
    """The four figures for `clips` clips against `reference` ones."""

    clips: int
    reference: int
    fid: float
    inception: float
    modified_inception: float
    am: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def distances(heard: Heard, reference: Heard) -> Distances:
    """All four figures of generated clips against reference clips.

    Raises:
        DataError: fewer than two clips on either side.
    """
    p = heard.probabilities
    return Distances(
        len(p),
        len(reference.probabilities),
        frechet_distance(heard.features, reference.features),
        inception_score(p),
        modified_inception_score(p),
        am_score(p, reference.probabilities),
    )


def frechet_distance(features: Array, reference: Array) -> float:
    """FID of features (n, d) and (m, d)."""
    _require_two(features, reference)
    mean, other = features.mean(axis=0), reference.mean(axis=0)
    a, b = np.cov(features, rowvar=False), np.cov(reference, rowvar=False)
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    # tr (A B)^(1/2) = tr (A^(1/2) B A^(1/2))^(1/2), which is symmetric: no complex dust.
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(min=0)).sum()
    distance = np.square(mean - other).sum() + np.trace(a) + np.trace(b) - 2 * cross
    return float(max(distance, 0.0))


def inception_score(probabilities: Array) -> float:
    """IS of (n, classes)."""
    _require_two(probabilities)
    p = probabilities
    kl = (_log(p) - _log(p.mean(axis=0))) * p
    return float(np.exp(kl.sum(axis=1).mean()))


def modified_inception_score(probabilities: Array) -> float:
    """mIS of (n, classes), over all n^2 pairs."""
    _require_two(probabilities)
    # E KL(p || q) = E sum p ln p - sum (E p)(E ln q): no pairs need be made.
    p, log_p = probabilities, _log(probabilities)
    return float(np.exp((p * log_p).sum(axis=1).mean() - p.mean(axis=0) @ log_p.mean(axis=0)))


def am_score(probabilities: Array, reference: Array) -> float:
    """AM of (n, classes) against a reference (m, classes)."""
    _require_two(probabilities, reference)
    p, q = reference.mean(axis=0), probabilities.mean(axis=0)
    entropy = -(probabilities * _log(probabilities)).sum(axis=1).mean()
    return float(p @ (_log(p) - _log(q)) + entropy)


def _log(p: Array) -> Array:
    return np.log(np.maximum(p, _LEAST))


def _require_two(*sets: Array) -> None:
    for values in sets:
        if len(values) < 2:
            raise DataError(f"{len(values)} clip(s) are no distribution; give at least 2")
