"""How good a classification is: scores, their uncertainty, and how far its confidence is true.

Arrays over windows: `true` and `predicted` (n,) class ids, `values` (n,) one number a window,
`groups` (n,) the unit that is resampled (a genome, or a 50 kb block of one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mambacore.errors import UsageError

_DRAWS_AT_ONCE = 4_000_000  # resampling counts held in memory at a time


@dataclass(frozen=True)
class ClassScore:
    """One class of a classification. `recall` is NaN when the class has no window to find."""

    label: str
    support: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Scores:
    """What `score` returns; `confusion[t, p]` counts windows of class t called p."""

    accuracy: float
    macro_accuracy: float
    f1: float
    mcc: float
    per_class: tuple[ClassScore, ...]
    confusion: NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval, and how many groups it was drawn from in the smallest class."""

    low: float
    high: float
    confidence: float
    groups: int
    smallest: int


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in bins of confidence; NaN where a bin is empty."""

    edges: NDArray[np.float64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]
    ece: float


def _ids(values: ArrayLike, name: str, classes: int) -> NDArray[np.int64]:
    ids = np.asarray(values)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise UsageError(
            f"{name} must be a list of whole class ids, not shape {ids.shape} of {ids.dtype}"
        )
    ids = ids.astype(np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < classes:
        raise UsageError(
            f"{name} holds ids {ids.min()} to {ids.max()}; there are {classes} classes"
        )
    return ids


def score(true: ArrayLike, predicted: ArrayLike, labels: Sequence[str]) -> Scores:
    """Accuracy, macro accuracy, macro F1, Matthews correlation, per-class table, confusion.

    Macro figures are means over the classes that occur in `true`: macro accuracy is the mean
    recall, which no class can dominate by having more windows.

    Args:
        true: (n,) class ids, n >= 1.
        predicted: (n,) class ids.
        labels: the classes' names; ids index it.

    Raises:
        UsageError: nothing to score, lengths that differ, or an id outside the labels.

    A class that is never predicted has precision 0; one that never occurs has recall NaN and F1
    0 and counts in no macro figure. Scores follow scikit-learn's definitions.

    >>> s = score([0, 0, 0, 1], [0, 0, 1, 1], ["ape", "bat"])
    >>> s.accuracy, round(s.macro_accuracy, 3), s.confusion.tolist()
    (0.75, 0.833, [[2, 1], [0, 1]])
    """
    from sklearn.metrics import confusion_matrix, matthews_corrcoef

    classes = len(labels)
    truth, calls = _ids(true, "true", classes), _ids(predicted, "predicted", classes)
    if truth.shape != calls.shape or truth.size == 0:
        raise UsageError(
            f"cannot score {calls.size} predictions of {truth.size} windows: "
            "give one prediction for each window, and at least one window"
        )
    confusion = np.asarray(confusion_matrix(truth, calls, labels=np.arange(classes)), np.int64)
    hits, support, called = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision = hits / np.maximum(called, 1)
    recall = np.where(support > 0, hits / np.maximum(support, 1), np.nan)
    f1 = 2 * hits / np.maximum(support + called, 1)
    present = support > 0
    one_label = np.all(truth == truth[0]) and np.all(calls == truth[0])  # sklearn would warn
    per_class = tuple(
        ClassScore(str(name), int(n), float(p), float(r), float(f))
        for name, n, p, r, f in zip(labels, support, precision, recall, f1, strict=True)
    )
    return Scores(
        accuracy=float(np.mean(truth == calls)),
        macro_accuracy=float(np.mean(recall[present])),
        f1=float(np.mean(f1[present])),
        mcc=0.0 if one_label else float(matthews_corrcoef(truth, calls)),
        per_class=per_class,
        confusion=confusion,
    )


def bootstrap_interval(
    values: ArrayLike,
    true: ArrayLike,
    groups: ArrayLike,
    *,
    macro: bool = True,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean over windows, resampling whole groups.

    Windows of one genome resemble each other, so windows are never drawn singly: in each class,
    as many groups as it has are drawn with replacement (stratified, so each class keeps its
    number of groups), and every drawn group brings all its windows. With `values` = "is right"
    this is the interval of (macro) accuracy; with the difference of two classifiers' "is right"
    it is the paired interval of their difference.

    Args:
        values: (n,) numbers or booleans, one a window.
        true: (n,) the window's class, which is the stratum.
        groups: (n,) the window's group; equal values in different classes are different groups.
        macro: mean over classes of the class means; otherwise the plain mean over windows.
        confidence: probability that the interval is meant to cover, in (0, 1).
        samples: resamples drawn; seed: of the draw, equal seeds give equal intervals.

    Edge cases: a class with a single group does not vary, so the interval is then too narrow;
    `Interval.smallest` says so.

    Source: B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    >>> bootstrap_interval([1, 1, 0, 1], [0, 0, 1, 1], ["a", "b", "c", "d"]).low
    0.5
    """
    value = np.asarray(values, dtype=np.float64)
    truth = np.asarray(true)
    group = np.asarray(groups)
    if not (value.shape == truth.shape == group.shape and value.ndim == 1 and value.size):
        raise UsageError(
            f"values, true and groups must be lists of one length above 0, "
            f"not {value.shape}, {truth.shape} and {group.shape}"
        )
    if not 0 < confidence < 1 or samples < 1:
        raise UsageError(
            f"confidence must lie between 0 and 1 and samples be at least 1, "
            f"not {confidence} and {samples}"
        )
    rng = np.random.default_rng(seed)
    strata = []  # of each class: sum of values and number of windows of each group
    for label in np.unique(truth):
        own = truth == label
        _, unit = np.unique(group[own], return_inverse=True)
        strata.append((np.bincount(unit, value[own]), np.bincount(unit).astype(np.float64)))
    drawn = np.zeros((len(strata), 2, samples))
    for (totals, sizes), out in zip(strata, drawn, strict=True):
        n = len(totals)
        step = max(1, _DRAWS_AT_ONCE // n)
        for start in range(0, samples, step):
            stop = min(samples, start + step)
            times = rng.multinomial(n, np.full(n, 1 / n), size=stop - start)
            out[:, start:stop] = times @ totals, times @ sizes
    if macro:
        statistic = (drawn[:, 0] / drawn[:, 1]).mean(axis=0)
    else:
        statistic = drawn[:, 0].sum(axis=0) / drawn[:, 1].sum(axis=0)
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic, [tail, 1 - tail])
    counts = [len(totals) for totals, _ in strata]
    return Interval(float(low), float(high), confidence, sum(counts), min(counts))


def reliability(confidence: ArrayLike, correct: ArrayLike, *, bins: int = 15) -> Reliability:
    """Reliability curve and expected calibration error, ECE = sum_b n_b/n |acc_b - conf_b|.

    Args:
        confidence: (n,) probability given to the class that was called, in [0, 1].
        correct: (n,) whether the call was right.
        bins: number of bins of equal width over [0, 1]; a bin holds its left edge, the last
            one both.

    Source: Guo et al., On Calibration of Modern Neural Networks (2017), equation 3.

    >>> reliability([0.75, 0.75, 0.75, 0.75], [True, True, True, False]).ece
    0.0
    """
    p = np.asarray(confidence, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    if p.shape != right.shape or p.ndim != 1 or not p.size or bins < 1:
        raise UsageError(
            f"reliability needs one confidence for each window and a bin or more, "
            f"not {p.shape}, {right.shape} and {bins} bins"
        )
    if not (p >= 0).all() or not (p <= 1 + 1e-6).all():
        raise UsageError(f"confidence must lie in [0, 1], not {p.min()} to {p.max()}")
    which = np.minimum((p * bins).astype(np.int64), bins - 1)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_p = np.bincount(which, p, bins) / count
        mean_right = np.bincount(which, right, bins) / count
    gaps = np.nan_to_num(np.abs(mean_right - mean_p))
    ece = float((count * gaps).sum() / p.size)
    return Reliability(np.linspace(0, 1, bins + 1), mean_p, mean_right, count, ece)
