"""Sounds of a run beside real ones, for its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mambaaudio.corpus import Log, Recording
from mambacore.errors import DataError

from .corpora import corpus_for, options_of

if TYPE_CHECKING:
    import torch

    from mambaaudio.report import Pair


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
        name = recording.name
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
