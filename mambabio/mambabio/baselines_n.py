"""How far the runs of N alone would go: the shortcut that cutting N closes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mambabio.alphabet import Ids, N
from mambabio.baselines import macro_accuracy
from mambabio.sheet import Split
from mambabio.store import SequenceStore
from mambabio.windows import WindowSet, tile_windows
from mambacore.errors import UsageError

_DEPTH = 6
_LEAF = 5


def n_features(ids: Ids) -> tuple[int, int, int, float, int]:
    """Of one window: N in all, runs of N, longest run, mean run, N at its edges.

    Example:
        >>> n_features(np.array([0, 4, 4, 1, 4], np.uint8))
        (3, 2, 2, 1.5, 1)
    """
    is_n = np.concatenate([[False], ids == N, [False]])
    edges = np.flatnonzero(np.diff(is_n.astype(np.int8)))
    runs = edges[1::2] - edges[::2]
    if len(runs) == 0:
        return 0, 0, 0, 0.0, 0
    ends = int(is_n[1]) + int(is_n[-2])
    return int(runs.sum()), len(runs), int(runs.max()), float(runs.mean()), ends


def n_only_accuracy(
    store: SequenceStore, window: int, *, split: Split = "test", seed: int = 0
) -> float:
    """Macro accuracy of a decision tree that sees nothing but the runs of N in each window.

    Args:
        store: built with ``n_policy="keep"``: the sequences before N is cut.
        window: bases. split: which windows to score; the tree learns from the training windows.
        seed: of the tree's ties.

    Returns:
        From 0 to 1; about 1 / classes where N tells nothing.

    Raises:
        UsageError: the store was built with another n_policy.
        DataError: no windows of that length.
    """
    from sklearn.tree import DecisionTreeClassifier

    if store.n_policy != "keep":
        raise UsageError(
            f"the store was built with n_policy {store.n_policy!r}, so N is gone; build it with "
            "'keep' to see what N would have told"
        )
    train, scored = (tile_windows(store, which, window) for which in ("train", split))
    tree = DecisionTreeClassifier(
        max_depth=_DEPTH, min_samples_leaf=_LEAF, class_weight="balanced", random_state=seed
    )
    tree.fit(_features(train), train.labels)
    called = np.asarray(tree.predict(_features(scored)), np.int64)
    return macro_accuracy(called, scored.labels)


def _features(windows: WindowSet) -> NDArray[np.float64]:
    records = windows.store.records
    rows = zip(
        windows.record.tolist(), windows.start.tolist(), windows.length.tolist(), strict=True
    )
    features = [n_features(windows.store.ids(records[r], s, n)) for r, s, n in rows]
    return np.array(features, np.float64)
