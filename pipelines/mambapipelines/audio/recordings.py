"""The corpus of a sheet as a trained model reads it, and sounds of a run beside real ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mambaaudio.corpus import Corpus, Log, Recording, build_corpus
from mambaaudio.model_config import WaveformConfig
from mambaaudio.sheet import load_samples
from mambacore.cache import default_cache_dir
from mambacore.errors import DataError

if TYPE_CHECKING:
    import torch

    from mambaaudio.report import Pair


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


def corpus_for(
    config: WaveformConfig, samples: str | Path, run: Path | None, *, skip_bad: bool, log: Log
) -> Corpus:
    """A sheet's recordings at the model's rate and gain, with the model's labels and speakers.

    With a run its options (held-out part, seed, channel, cache) are used, so that the same
    recordings are for validation.
    """
    sheet = load_samples(samples, labels=config.labels, speakers=config.speakers)
    options, seed = options_of(run)
    noted = config.trained_on.get("gain")
    gain: Any = noted if noted in ("none", "file") else config.gain
    cache = options.get("cache") or (run / "cache" if run else default_cache_dir() / "audio")
    return build_corpus(
        sheet,
        cache,
        rate=config.rate,
        channel=options.get("channel", "mix"),
        gain=gain,
        validation=options.get("validation", 0.1),
        validation_by=options.get("validation_by", "file"),
        seed=seed,
        skip_bad=skip_bad,
        log=log,
    )


def make_pairs(
    run: Path,
    count: int,
    seconds: float,
    device: torch.device,
    *,
    seed: int = 0,
    log: Log,
) -> list[Pair]:
    """Real recordings that were not trained on, and what the run's model makes in their place.

    A labelled clip stands beside a clip of its label; of a longer recording, the first part (a
    quarter, 4 s at most) is the prompt that the model goes on from. None where the run names no
    samples that can still be read.
    """
    import numpy as np

    from mambaaudio.generator import Generator
    from mambaaudio.report import Pair

    samples = options_of(run)[0].get("samples")
    if not samples or count < 1:
        return []
    generator = Generator.from_pretrained(run, device=device)
    config = generator.config
    try:
        corpus = corpus_for(config, samples, run, skip_bad=True, log=lambda line: None)
    except DataError as error:
        log(f"no sounds are shown, the run's recordings cannot be read: {error}")
        return []
    unseen = corpus.select("test") or corpus.select("val") or corpus.select("train")
    pairs = []
    for number, recording in enumerate(_spread(unseen, count)):
        length = min(recording.length, round(seconds * corpus.rate))
        real = corpus.samples(recording, 0, length).astype(np.float32) / np.float32(32768)
        name = recording.path.name
        if config.end_event and recording.label_id:
            label = corpus.labels[recording.label_id - 1]
            log(f"generating a clip of {label} beside {name}")
            made = generator.generate(seconds, label=label, seed=seed + number)
            note = f"label {label}, seed {seed + number}, temperature 1"
            pairs.append(Pair(name, real, made.waveforms[0], corpus.rate, note=note))
            continue
        heard = max(1, min(length // 4, 4 * corpus.rate))
        log(f"going on from the first {heard / corpus.rate:.1f} s of {name}")
        made = generator.generate(
            max(length - heard, 1) / corpus.rate, prompt=real[:heard], seed=seed + number
        )
        whole = np.concatenate([real[:heard], made.waveforms[0]])
        note = f"continues the first {heard / corpus.rate:.1f} s, seed {seed + number}"
        pairs.append(Pair(name, real, whole, corpus.rate, heard / corpus.rate, note))
    return pairs


def _spread(recordings: tuple[Recording, ...], count: int) -> list[Recording]:
    """At most `count`, evenly over the list."""
    many = min(count, len(recordings))
    return [recordings[i * len(recordings) // many] for i in range(many)] if many else []
