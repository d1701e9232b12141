"""Which sequence store and which baselines a verb reads: the run's own where they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mambabio.baselines import KmerBaselines
from mambabio.classifier_config import ClassifierConfig
from mambabio.prepared import load_sequences, store_of
from mambabio.sheet import Split
from mambabio.store import Log, NPolicy, SequenceStore
from mambabio.windows import tile_windows
from mambacore.cache import default_cache_dir
from mambacore.errors import DataError

from ..runs import Run


def run_of(path: Path) -> Path | None:
    """The run folder that a ``--model`` path means: itself or, for ``RUN/model``, its parent."""
    for folder in (path, path.absolute().parent):
        if (folder / "config.yaml").is_file() and (folder / "model").is_dir():
            return folder
    return None


def store_for(
    config: ClassifierConfig,
    samples: Path,
    run: Path | None,
    *,
    n_policy: NPolicy | None = None,
    log: Log,
) -> SequenceStore:
    """The store of a sheet, cut and held out as the model's training did it.

    With a run its options (held-out part, seed, cache) are used, so that the training's own store
    is found again and its validation records are the same. `n_policy` takes the place of the
    model's.

    Raises:
        DataError: the sheet or a file is wrong, or has a label that the model does not know.
    """
    source = load_sequences(samples, labels=config.labels)
    options: dict[str, Any] = {}
    seed = 0
    if run is not None:
        values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        options, seed = values.get("data", {}), values.get("seed", 0)
    cache = options.get("cache") or (run / "cache" if run else default_cache_dir() / "stores")
    return store_of(
        source,
        cache,
        n_policy=n_policy or config.n_policy,
        validation=options.get("validation", 0.1),
        seed=seed,
        log=log,
    )


def check_window(store: SequenceStore, split: Split, window: int) -> None:
    """Refuse a window that was asked for and that no record of the split fills.

    Raises:
        DataError: it is longer than every record.
    """
    longest = max(store.select(split), key=lambda record: record.length, default=None)
    if longest is not None and longest.length < window:
        raise DataError(
            f"--window {window:,} is longer than every {split} record; the longest is "
            f"{longest.name!r} with {longest.length:,} bases. Ask for a window of at most that."
        )


def fit_baselines(store: SequenceStore, window: int, log: Log) -> KmerBaselines:
    """The k-mer baselines of a store's training part, chosen on its validation part."""
    train = tile_windows(store, "train", window)
    val = tile_windows(store, "val", window) if store.select("val") else None
    return KmerBaselines.fit(train, val, log=log)


def saved_baselines(run: Path | None, window: int) -> KmerBaselines | None:
    """The run's baselines for windows of that length; None where it has none."""
    path = None if run is None else Run(run).baselines(window)
    return KmerBaselines.load(path) if path and path.is_file() else None
