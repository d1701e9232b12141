"""Which corpus a verb reads for a trained model: the run's own where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mambaaudio.corpus import Corpus, Log, build_corpus
from mambaaudio.model_config import WaveformConfig
from mambaaudio.sheet import load_samples
from mambaaudio.windows import Layout
from mambacore.cache import default_cache_dir


def gain_of(config: WaveformConfig) -> Any:
    """`gain` of `mambaaudio.corpus.build_corpus` as a model's training had it."""
    noted = config.trained_on.get("gain")
    return noted if noted in ("none", "file") else config.gain


def corpus_for(
    config: WaveformConfig,
    samples: Path,
    run: Path | None,
    *,
    skip_bad: bool = False,
    log: Log,
) -> Corpus:
    """The corpus of a sheet at a model's rate and gain, held out as the model's training did it.

    With a run its options (channel, held-out part, seed, cache) are used, so that the training's
    own corpus is found again and its validation recordings are the same.

    Args:
        config: the model's.
        samples: sheet, folder or pattern.
        run: the model's run folder, if it has one.
        skip_bad: leave out files that cannot be read, whatever the run did.
        log: called with progress and counts.

    Raises:
        DataError: the sheet or a file is wrong, or has a label that the model does not know.
    """
    sheet = load_samples(samples, labels=config.labels, speakers=config.speakers)
    options: dict[str, Any] = {}
    seed = 0
    if run is not None:
        values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        options, seed = values.get("data", {}), values.get("seed", 0)
    cache = options.get("cache") or (run / "cache" if run else default_cache_dir() / "corpora")
    return build_corpus(
        sheet,
        cache,
        rate=config.rate,
        channel=options.get("channel", "mix"),
        gain=gain_of(config),
        validation=options.get("validation", 0.1),
        validation_by=options.get("validation_by", "file"),
        seed=seed,
        skip_bad=skip_bad or options.get("skip_bad", False),
        log=log,
    )


def layout_for(config: WaveformConfig, corpus: Corpus, window: int) -> Layout:
    """How the model's training read such recordings: clips only if it knows the end event."""
    clips = None if config.end_event else False
    return Layout.choose(corpus, window, code=config.code, clips=clips)
