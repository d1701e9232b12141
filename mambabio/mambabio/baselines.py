"""What counting k-mers can do on the same windows: the baselines beside every accuracy."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from mambabio.baselines_bayes import KmerCounts, NaiveBayes
from mambabio.baselines_linear import LinearKmers, fold_strands, window_frequencies
from mambabio.windows import WindowBatch, WindowSet
from mambacore.cache import atomic_path
from mambacore.errors import DataError, UsageError

_LINEAR_K = 6
_BAYES_KS = (8, 10, 12)
_ALPHAS = (0.5, 1.0)
_STRENGTHS = (1e-3, 1e-2)
_MOST_LINEAR = 15_000  # windows to fit on: 250 MB of 6-mer frequencies
_MOST_VALIDATION = 5_000
_VERSION = 1
_SCORED_BASES = 1 << 18  # in one batch


@dataclass(frozen=True)
class Baseline:
    """One fitted baseline. kind: "linear" or "naive Bayes". k: bases of its k-mers.

    validation: macro accuracy on the validation windows that chose its settings; None without.
    """

    kind: str
    k: int
    validation: float | None = None

    @property
    def name(self) -> str:
        """Short: ``linear6``, ``nb12``."""
        return f"{'nb' if self.kind == 'naive Bayes' else self.kind}{self.k}"


@dataclass(frozen=True, eq=False)
class KmerBaselines:
    """Fitted k-mer classifiers for windows of one length.

    labels: class names. window: bases. members: a linear classifier on 6-mers and naive Bayes,
    its k chosen. best: the better one by validation. An evaluation shows both, and the one that a
    model has to beat there is the better on the windows scored: validation may not tell.
    """

    labels: tuple[str, ...]
    window: int
    members: tuple[Baseline, ...]
    best: Baseline
    _models: tuple[LinearKmers | NaiveBayes, ...]

    @classmethod
    def fit(
        cls,
        train: WindowSet,
        val: WindowSet | None,
        *,
        ks: Sequence[int] = _BAYES_KS,
        linear_k: int = _LINEAR_K,
        seed: int = 0,
        log: Callable[[str], None] | None = None,
    ) -> KmerBaselines:
        """Fit on training windows and choose on validation windows; the test part is not touched.

        The linear classifier learns from at most 15,000 training windows, equally many a class
        where possible; its penalty, and whether k-mers are folded over the strands, are chosen.
        Naive Bayes counts the canonical k-mers of whole training records; k and alpha (.5 or 1)
        are chosen. Choices go by macro accuracy on at most 5,000 validation windows. Of what
        lies within two binomial standard errors of the best, the larger k is taken, and naive
        Bayes before the linear one: validation windows lie near training windows, so that short
        k-mers look better there than in another locus or genome.

        Args:
            train: tiling of the training records (`tile_windows`). val: of the validation
                records, or None: then k is the largest, alpha 1, and naive Bayes is the best.
            ks: for naive Bayes, 1 to 15 each. linear_k: 1 to 8. seed: of the draw of windows.
            log: called with a line a step.

        Raises:
            UsageError: a k out of range, or window lengths that differ.
            DataError: the training windows are all of one class.
        """
        _check(train, val, ks, linear_k)
        say = log or (lambda line: None)
        if val is not None:
            val = _sample(val, _MOST_VALIDATION, seed)
        linear, linear_score = _fit_linear(_sample(train, _MOST_LINEAR, seed), val, linear_k)
        say(f"baseline: linear on {linear.k}-mers, validation {_shown(linear_score)}")
        bayes, bayes_score = _fit_bayes(train, val, ks)
        say(f"baseline: naive Bayes on {bayes.k}-mers, validation {_shown(bayes_score)}")
        members = (
            Baseline(linear.kind, linear.k, linear_score),
            Baseline(bayes.kind, bayes.k, bayes_score),
        )
        best = members[1] if val is None else _choose(members[::-1], len(val))
        return cls(train.store.labels, train.window, members, best, (linear, bayes))

    def predict_log_proba(
        self, windows: WindowSet | WindowBatch, member: Baseline | None = None
    ) -> NDArray[np.float64]:
        """Log-probabilities (n, classes) of windows by one member, by default the best.

        Naive Bayes is right about the order of classes and far too sure of it: neighbouring
        k-mers share bases.
        """
        model = self._models[self.members.index(self.best if member is None else member)]
        scores = _scores(model, windows)
        top = scores.max(axis=1, keepdims=True)
        return scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an npz file that `load` reads, so that nothing has to be fitted again."""
        arrays: dict[str, Any] = {
            "version": np.array(_VERSION),
            "labels": np.array(self.labels),
            "window": np.array(self.window),
            "best": np.array(self.members.index(self.best)),
        }
        for place, (member, model) in enumerate(zip(self.members, self._models, strict=True)):
            own = model.to_arrays() | {"kind": np.array(member.kind)}
            if member.validation is not None:
                own["validation"] = np.array(member.validation)
            arrays |= {f"{place}.{name}": array for name, array in own.items()}
        with atomic_path(path) as beside, open(beside, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KmerBaselines:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing or is not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            if int(arrays["version"]) != _VERSION:
                raise ValueError(f"version {arrays['version']} is not {_VERSION}")
            members, models = [], []
            for place in range(2):
                prefix = f"{place}."
                own = {n[len(prefix) :]: a for n, a in arrays.items() if n.startswith(prefix)}
                kind = str(own.pop("kind"))
                score = float(own.pop("validation")) if "validation" in own else None
                model = (LinearKmers if kind == "linear" else NaiveBayes).from_arrays(own)
                models.append(model)
                members.append(Baseline(kind, model.k, score))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise DataError(f"{Path(path)} cannot be read as k-mer baselines: {error}") from error
        labels = tuple(str(label) for label in arrays["labels"])
        best = members[int(arrays["best"])]
        return cls(labels, int(arrays["window"]), tuple(members), best, tuple(models))


def _check(train: WindowSet, val: WindowSet | None, ks: Sequence[int], linear_k: int) -> None:
    if not ks or not all(1 <= k <= 15 for k in ks) or not 1 <= linear_k <= 8:
        raise UsageError(
            f"ks are {tuple(ks)} and linear_k is {linear_k}; accepted are 1 to 15 and 1 to 8"
        )
    if val is not None and val.window != train.window:
        raise UsageError(
            f"training windows have {train.window} bases and validation windows {val.window}; "
            "tile both with the same length"
        )
    if len(np.unique(train.labels)) < 2:
        raise DataError("baselines need training windows of two classes at least")


def _shown(score: float | None) -> str:
    return "none" if score is None else f"{score:.3f}"


def _sample(windows: WindowSet, most: int, seed: int) -> WindowSet:
    """At most so many windows, as equally among the classes as they allow."""
    if len(windows) <= most:
        return windows
    order = np.random.default_rng(seed).permutation(len(windows))
    labels = windows.labels[order]
    rank = np.empty(len(order), np.int64)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    return windows.take(np.sort(order[np.argsort(rank, kind="stable")[:most]]))


def macro_accuracy(called: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    """Mean over the classes that occur of the share of their windows called rightly."""
    return float(np.mean([(called[true == label] == label).mean() for label in np.unique(true)]))


def _scores(
    model: LinearKmers | NaiveBayes, windows: WindowSet | WindowBatch
) -> NDArray[np.float64]:
    if isinstance(windows, WindowBatch):
        return model.scores(windows)
    size = max(1, _SCORED_BASES // windows.window)
    parts = [
        model.scores(windows.batch(slice(start, start + size)))
        for start in range(0, len(windows), size)
    ]
    return np.concatenate(parts)


def _fit_linear(
    train: WindowSet, val: WindowSet | None, k: int
) -> tuple[LinearKmers, float | None]:
    classes = len(train.store.labels)
    plain = window_frequencies(train, k)
    plain_val = None if val is None else window_frequencies(val, k)
    best: tuple[float, LinearKmers] | None = None
    for canonical in (True, False):
        features = fold_strands(plain, k) if canonical else plain
        for strength in _STRENGTHS:
            model = LinearKmers.fit(
                features, train.labels, classes, k=k, canonical=canonical, strength=strength
            )
            if val is None or plain_val is None:
                return model, None
            held = fold_strands(plain_val, k) if canonical else plain_val
            score = macro_accuracy(model.scores_of(held).argmax(axis=1), val.labels)
            if best is None or score > best[0]:
                best = score, model
    assert best is not None
    return best[1], best[0]


def _fit_bayes(
    train: WindowSet, val: WindowSet | None, ks: Sequence[int]
) -> tuple[NaiveBayes, float | None]:
    if val is None:
        return NaiveBayes(KmerCounts.of(train.store, max(ks)), 1.0), None
    found: list[tuple[Baseline, NaiveBayes]] = []
    for k in sorted(ks, reverse=True):
        plain = NaiveBayes(KmerCounts.of(train.store, k), 1.0)
        tried = [plain.with_alpha(alpha) for alpha in sorted(_ALPHAS, reverse=True)]
        scores = [macro_accuracy(_scores(m, val).argmax(axis=1), val.labels) for m in tried]
        top = int(np.argmax(scores))
        found.append((Baseline(plain.kind, k, scores[top]), tried[top]))
    chosen = _choose([entry for entry, _ in found], len(val))
    return next((m, b.validation) for b, m in found if b is chosen)


def _choose(ordered: Sequence[Baseline], windows: int) -> Baseline:
    """The first, in order of preference, that is not clearly worse than the best."""
    best = max(entry.validation or 0.0 for entry in ordered)
    # Smoothed, so that a perfect score on few windows has an error too.
    share = (best * windows + 1) / (windows + 2)
    margin = 2 * (share * (1 - share) / windows) ** 0.5
    return next(entry for entry in ordered if (entry.validation or 0.0) >= best - margin)
