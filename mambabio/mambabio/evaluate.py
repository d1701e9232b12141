"""Score a classifier on a split of a sequence store, beside chance and k-mer baselines."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mambabio.alphabet import Ids
from mambabio.baselines import KmerBaselines
from mambabio.baselines_n import n_only_accuracy
from mambabio.calibration import fit_temperature
from mambabio.classifier import SpeciesClassifier
from mambabio.evaluation import Evaluation, SubsetScore
from mambabio.metrics import Interval, bootstrap_interval, reliability, score
from mambabio.near_duplicates import known_near_duplicates
from mambabio.rivals import Rivals
from mambabio.scoring import Scorer, normalise
from mambabio.sheet import Split
from mambabio.store import SequenceStore
from mambabio.windows import MINIMUM_WINDOW, WindowBatch, WindowSet, tile_windows
from mambacore.errors import UsageError

Progress = Callable[[int, int], None]
"""Called with windows done and windows in all."""


def window_log_probabilities(
    scorer: Scorer,
    tiles: WindowSet,
    *,
    piece: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """(n, classes) log-probabilities of a set of windows, in their order.

    piece: average those of pieces of this many bases, where windows are longer; whole otherwise.
    """
    size = scorer.batch_size(tiles.window) if batch_size is None else batch_size
    if size < 1:
        raise UsageError(f"batch_size is {size}; give a whole number of at least 1")
    out = np.empty((len(tiles), len(scorer.model.labels)))
    # By length, so that short windows are not padded to long ones.
    order = np.argsort(tiles.length, kind="stable")
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        batch = tiles.batch(chosen)
        if piece is not None and piece < tiles.window:
            out[chosen] = _by_pieces(scorer, batch, piece)
        else:
            longest = int(batch.lengths.max())
            out[chosen] = scorer(batch.tokens[:, :longest], batch.lengths)
        if progress is not None:
            progress(min(start + size, len(order)), len(order))
    return out


def _by_pieces(scorer: Scorer, batch: WindowBatch, piece: int) -> NDArray[np.float64]:
    """Mean log-probabilities of each window's pieces by their bases, as `classify` has it."""
    least = min(MINIMUM_WINDOW, piece)
    pieces: list[Ids] = []
    owners: list[int] = []
    for row, (ids, length) in enumerate(zip(batch.tokens, batch.lengths.tolist(), strict=True)):
        for start in range(0, length, piece):
            part = ids[start : min(start + piece, length)]
            if start == 0 or len(part) >= least:
                pieces.append(part)
                owners.append(row)
    weights = np.array([len(part) for part in pieces], dtype=np.float64)
    log_p = scorer.windows(pieces, scorer.batch_size(piece))
    total = np.zeros((len(batch.lengths), log_p.shape[1]))
    np.add.at(total, owners, log_p * weights[:, None])
    return total / np.bincount(owners, weights)[:, None]


def calibrate(
    model: SpeciesClassifier,
    store: SequenceStore,
    *,
    window: int | None = None,
    batch_size: int | None = None,
    precision: str = "float32",
    most: int = 20_000,
) -> float:
    """Fit the model's temperature on the validation windows of a store, and set it.

    Args:
        model: its `config.temperature` is replaced.
        store: with validation records.
        window: bases; the trained length by default.
        batch_size, precision: as for `evaluate`.
        most: windows to use at most, spread evenly over the validation windows.

    Returns:
        The temperature.
    """
    _check_store(model, store)
    tiles = tile_windows(store, "val", model.config.window if window is None else window)
    if len(tiles) > most:
        tiles = tiles.take(np.linspace(0, len(tiles) - 1, most).astype(np.int64))
    model.with_temperature(1.0)
    logits = window_log_probabilities(
        Scorer(model, precision=precision), tiles, batch_size=batch_size
    )
    temperature = fit_temperature(logits, _to_model_ids(model, store)[tiles.labels])
    model.with_temperature(temperature)
    return temperature


def evaluate(
    model: SpeciesClassifier,
    store: SequenceStore,
    *,
    split: Split = "test",
    window: int | None = None,
    baselines: KmerBaselines | None = None,
    fit_baselines: bool = True,
    with_n: SequenceStore | None = None,
    batch_size: int | None = None,
    both_strands: bool | None = None,
    precision: str = "float32",
    near_duplicates: Collection[int] | None = None,
    whole: bool = False,
    candidates: Literal["model", "sheet"] = "model",
    samples: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
    log: Callable[[str], None] | None = None,
) -> Evaluation:
    """Score every window of a non-overlapping tiling of a split's records.

    Args:
        model: the classifier; its device is used.
        store: the sequences, cut as the model's `n_policy` says; its labels are the model's.
        split: "train", "val" or "test".
        window: bases; the trained length by default.
        baselines: k-mer classifiers fitted for this window length; fitted here by default, on
            the store's training records.
        fit_baselines: whether to do that.
        with_n: the same sheet's store with ``n_policy="keep"``, for what a classifier that sees
            only runs of N reaches; `store` itself where it is such a one, else not looked at.
        batch_size, both_strands, precision: as for `mambabio.classify.classify`.
        near_duplicates: places in `store.records` that are nearly in the training data, for the
            figures without them; looked for in the test split by default, none if empty.
        whole: read a window that is longer than the trained length in one pass; by default its
            pieces of the trained length are averaged, as `classify` does.
        candidates: which classes may be called: all that the model knows, or only those that
            the sheet has records of, so that a model of many species answers a question about a
            few. `baselines` are then for these classes.
        samples, seed: of the bootstrap.
        progress: called with windows done and in all.
        log: called with a line a step of the baselines.

    Returns:
        An `Evaluation`.

    Raises:
        UsageError: labels or n_policy of the store are not the model's; numbers out of range.
        DataError: the split has no windows of this length.
    """
    _check_store(model, store)
    if candidates == "sheet":
        store, with_n = store.narrowed(), with_n and with_n.narrowed()
    window = model.config.window if window is None else window
    tiles = tile_windows(store, split, window)
    scorer = Scorer(model, both_strands=both_strands, precision=precision)
    piece = None if whole or window <= model.config.window else model.config.window
    log_p = window_log_probabilities(
        scorer, tiles, piece=piece, batch_size=batch_size, progress=progress
    )
    true, labels = _to_model_ids(model, store)[tiles.labels], model.labels
    if candidates == "sheet":
        true, labels = tiles.labels, store.labels
        log_p = np.log(normalise(log_p[:, _to_model_ids(model, store)]))
    called = log_p.argmax(axis=1)
    right = called == true

    rivals = Rivals.on(tiles, baselines, fit=fit_baselines, log=log)
    figures = score(true, called, labels)

    def macro_interval(values: NDArray[np.float64] | NDArray[np.bool_]) -> Interval:
        return bootstrap_interval(values, true, tiles.group, samples=samples, seed=seed)

    advantage = None
    if rivals.best is not None and rivals.best_right is not None:
        paired = macro_interval(right.astype(np.float64) - rivals.best_right)
        advantage = figures.macro_accuracy - rivals.best.macro_accuracy, paired
    subset = None
    if with_n is None and store.n_policy == "keep":
        with_n = store
    n_only = None
    if with_n is not None and with_n.select("train"):
        n_only = n_only_accuracy(with_n, window, split=split)
    if near_duplicates is None and split == "test":
        near_duplicates = known_near_duplicates(store, split, log=log)
    if near_duplicates:
        keep = ~np.isin(tiles.record, list(near_duplicates))
        subset = _subset(true, called, rivals.best_right, tiles, keep, labels, seed)
    confidence = np.minimum(np.exp(log_p.max(axis=1)), 1.0)
    return Evaluation(
        split=split,
        window=window,
        trained_window=model.config.window,
        labels=labels,
        windows=len(tiles),
        records=len(np.unique(tiles.record)),
        bases=int(tiles.length.sum()),
        accuracy=figures.accuracy,
        macro_accuracy=figures.macro_accuracy,
        interval=macro_interval(right),
        f1=figures.f1,
        mcc=figures.mcc,
        chance=1 / len(labels),
        majority=float(np.bincount(true).max() / len(true)),
        baseline=rivals.best,
        advantage=advantage,
        baselines=rivals.scores,
        no_baseline=rivals.reason,
        per_class=figures.per_class,
        confusion=figures.confusion,
        reliability=reliability(confidence, right),
        temperature=model.config.temperature,
        dropped=_dropped(store, tiles),
        excluding_near_duplicates=subset,
        both_strands=scorer.both_strands,
        n_only=n_only,
        piece=piece,
    )


def _check_store(model: SpeciesClassifier, store: SequenceStore) -> None:
    unknown = sorted(set(store.labels) - set(model.labels))
    if unknown:
        raise UsageError(
            f"the sheet has the label {unknown[0]!r}, which the model was not trained on; it "
            f"knows {', '.join(model.labels)}"
        )
    if store.n_policy != model.config.n_policy:
        raise UsageError(
            f"the sequences were prepared with n_policy {store.n_policy!r}, the model was trained "
            f"with {model.config.n_policy!r}; prepare them the same way"
        )


def _to_model_ids(model: SpeciesClassifier, store: SequenceStore) -> NDArray[np.int64]:
    """The model's class id of each of the store's."""
    return np.array([model.labels.index(label) for label in store.labels], dtype=np.int64)


def _dropped(store: SequenceStore, tiles: WindowSet) -> dict[str, int]:
    counts = store.dropped_counts
    for reason, count in tiles.dropped.items():
        counts[reason] = counts.get(reason, 0) + count
    return {reason: count for reason, count in counts.items() if count}


def _subset(
    true: NDArray[np.int64],
    called: NDArray[np.int64],
    best_right: NDArray[np.bool_] | None,
    tiles: WindowSet,
    keep: NDArray[np.bool_],
    labels: tuple[str, ...],
    seed: int,
) -> SubsetScore | None:
    """The figures of some windows; None where these are all or none."""
    if keep.all() or not keep.any():
        return None
    figures = score(true[keep], called[keep], labels)
    right = called[keep] == true[keep]
    beside = None
    if best_right is not None:
        beside = float(np.mean([best_right[keep & (true == c)].mean() for c in set(true[keep])]))
    return SubsetScore(
        records=len(np.unique(tiles.record[keep])),
        windows=int(keep.sum()),
        accuracy=figures.accuracy,
        macro_accuracy=figures.macro_accuracy,
        interval=bootstrap_interval(right, true[keep], tiles.group[keep], seed=seed),
        baseline_macro_accuracy=beside,
    )
