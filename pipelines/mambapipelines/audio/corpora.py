"""Which recordings a verb reads for a trained model: as its training read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mambaaudio.corpus import Corpus, Log, build_corpus
from mambaaudio.model_config import WaveformConfig
from mambaaudio.sheet import load_samples
from mambaaudio.waveform import Channels
from mambacore.cache import default_cache_dir
from mambacore.errors import DataError


def run_of(path: Path) -> Path | None:
    """The run folder that a ``--model`` path means: itself or, for ``RUN/model``, its parent."""
    for folder in (path, path.absolute().parent):
        if (folder / "config.yaml").is_file() and (folder / "model").is_dir():
            return folder
    return None


def options_of(run: Path | None) -> tuple[dict[str, Any], int]:
    """The data options of a run, and its seed; empty and 0 without one."""
    if run is None:
        return {}, 0
    try:
        values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        return dict(values.get("data") or {}), int(values.get("seed") or 0)
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{run / 'config.yaml'} cannot be read: {error}") from error


def gain_of(config: WaveformConfig) -> Any:
    """`gain` of `mambaaudio.corpus.build_corpus` as a model's training had it."""
    noted = config.trained_on.get("gain")
    return noted if noted in ("none", "file") else config.gain


def corpus_for(
    config: WaveformConfig,
    samples: str | Path,
    run: Path | None,
    *,
    channel: Channels | None = None,
    skip_bad: bool,
    log: Log,
) -> Corpus:
    """A sheet's recordings at the model's rate and gain, with the model's labels and speakers.

    With a run its options (held-out part, seed, channel, cache) are used, so that the same
    recordings are for validation.

    Args:
        config: the model's.
        samples: sheet, folder or pattern.
        run: the model's run folder, if it has one.
        channel: what becomes of several channels; by default as in the run, else their mean.
        skip_bad: leave out files that cannot be read.
        log: called with progress and counts.

    Raises:
        DataError: the sheet or a file is wrong, or has a label that the model does not know.
    """
    sheet = load_samples(samples, labels=config.labels, speakers=config.speakers)
    options, seed = options_of(run)
    cache = options.get("cache") or (run / "cache" if run else default_cache_dir() / "audio")
    return build_corpus(
        sheet,
        cache,
        rate=config.rate,
        channel=channel or options.get("channel", "mix"),
        gain=gain_of(config),
        validation=options.get("validation", 0.1),
        validation_by=options.get("validation_by", "file"),
        seed=seed,
        skip_bad=skip_bad,
        log=log,
    )
