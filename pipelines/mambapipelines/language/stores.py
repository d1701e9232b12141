"""Which sequence store a verb reads for a language model: the run's own where it fits."""

from __future__ import annotations

from pathlib import Path

import yaml

from mambabio.prepared import load_sequences, store_of
from mambabio.store import Log, SequenceStore
from mambacore.cache import default_cache_dir

from ..bio.stores import run_of
from .options import LanguageData


def store_for(samples: Path, model: Path, *, log: Log) -> SequenceStore:
    """The store of a sheet with N runs split, held out as the model's training did it.

    Args:
        samples: sheet, folder or sequence file.
        model: the ``--model`` path; of a run, its options (held-out part, seed, cache) are used.
        log: called with progress, a line each.

    Raises:
        DataError: the sheet or a file is wrong.
    """
    run = run_of(model)
    options, seed = LanguageData(), 0
    if run is not None:
        values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        known = LanguageData.__dataclass_fields__
        options = LanguageData(**{k: v for k, v in values["data"].items() if k in known})
        seed = values.get("seed", 0)
    cache = options.cache or (run / "cache" if run else default_cache_dir() / "stores")
    return store_of(
        load_sequences(samples.expanduser(), labelled=False),
        cache,
        n_policy="split",
        validation=options.validation,
        seed=seed,
        log=log,
    )
