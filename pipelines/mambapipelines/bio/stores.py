"""Which sequence store a verb reads: the run's own where the sheet is the run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mambabio.cache import default_cache_dir
from mambabio.classifier_config import ClassifierConfig
from mambabio.sheet import load_samples
from mambabio.store import Log, SequenceStore, build_store


def run_of(path: Path) -> Path | None:
    """The run folder that a ``--model`` path means: itself or, for ``RUN/model``, its parent."""
    for folder in (path, path.absolute().parent):
        if (folder / "config.yaml").is_file() and (folder / "model").is_dir():
            return folder
    return None


def store_for(
    config: ClassifierConfig, samples: Path, run: Path | None, *, log: Log
) -> SequenceStore:
    """The store of a sheet, cut and held out as the model's training did it.

    With a run its options (held-out part, seed, cache) are used, so that the training's own store
    is found again and its validation records are the same.

    Raises:
        DataError: the sheet or a file is wrong, or has a label that the model does not know.
    """
    sheet = load_samples(samples, labels=config.labels)
    options: dict[str, Any] = {}
    seed = 0
    if run is not None:
        values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        options, seed = values.get("data", {}), values.get("seed", 0)
    cache = options.get("cache") or (run / "cache" if run else default_cache_dir() / "stores")
    return build_store(
        sheet,
        cache,
        n_policy=config.n_policy,
        validation=options.get("validation", 0.1),
        seed=seed,
        log=log,
    )
