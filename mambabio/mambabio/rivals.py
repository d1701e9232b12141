"""The k-mer baselines of a store, scored on the windows that a model is scored on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambabio.baselines import KmerBaselines
from mambabio.evaluation import BaselineScore
from mambabio.metrics import score
from mambabio.store import SequenceStore
from mambabio.windows import WindowSet, tile_windows
from mambacore.errors import DataError, UsageError

Log = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Rivals:
    """What the baselines reach.

    scores: of every one. best: of the one that does best on these very windows, which is strict
    on the model; best_right: (n,) where it is right. reason: why there is none.
    """

    scores: tuple[BaselineScore, ...] = ()
    best: BaselineScore | None = None
    best_right: NDArray[np.bool_] | None = None
    reason: str | None = None

    @classmethod
    def on(
        cls, tiles: WindowSet, baselines: KmerBaselines | None, *, fit: bool, log: Log | None
    ) -> Rivals:
        """Score the baselines given or, if `fit`, those that the tiles' store allows."""
        if baselines is None:
            if not fit:
                return cls(reason="none was asked for")
            try:
                baselines = fit_baselines(tiles.store, tiles.window, log=log)
            except DataError as error:
                return cls(reason=f"none can be fitted: {error}")
        if (baselines.labels, baselines.window) != (tiles.store.labels, tiles.window):
            raise UsageError(
                f"the baselines are for windows of {baselines.window} bases and the classes "
                f"{', '.join(baselines.labels)}; the windows to score have {tiles.window} bases "
                f"and the classes {', '.join(tiles.store.labels)}"
            )
        scores: list[BaselineScore] = []
        right: list[NDArray[np.bool_]] = []
        for member in baselines.members:
            called = baselines.predict_log_proba(tiles, member).argmax(axis=1)
            s = score(tiles.labels, called, tiles.store.labels)
            scores.append(BaselineScore(member.kind, member.k, s.accuracy, s.macro_accuracy))
            right.append(called == tiles.labels)
        best = int(np.argmax([s.macro_accuracy for s in scores]))
        return cls(tuple(scores), scores[best], right[best])


def fit_baselines(store: SequenceStore, window: int, *, log: Log | None = None) -> KmerBaselines:
    """Fit the k-mer baselines on a store's training records, choosing on its validation ones.

    Raises:
        DataError: there are no training records of two classes, or none long enough.
    """
    train = tile_windows(store, "train", window)
    try:
        val = tile_windows(store, "val", window)
    except DataError:
        val = None
    return KmerBaselines.fit(train, val, log=log)
