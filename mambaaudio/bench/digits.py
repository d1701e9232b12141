"""Label-conditioned samples of the digits: recognised, by whom, memorised, how far from real.

    python mambaaudio/bench/digits.py --model FOLDER --audio DIR --work DIR --out DIR \\
        [--each 100] [--temperature 1.0] [--conditions label|label+speaker] [--device cuda]

Trains the classifier on the real training clips (takes 10 to 49), then generates `--each` clips a
digit with seeds 0, 1, ... and counts all of them. FID, IS, mIS and AM take `--samples` clips; the
reference is every real clip outside test, and real test clips stand beside as the floor.
Writes digits.json, samples/*.wav (the first of each digit) and features.npz.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import corpus_of
from numpy.typing import NDArray

from mambaaudio.corpus import Corpus
from mambaaudio.digits import ClipClassifier, Heard, leave_one_out
from mambaaudio.distribution import distances
from mambaaudio.generator import Generator
from mambaaudio.memorisation import memorisation
from mambaaudio.writer import WaveformWriter

Clips = list[NDArray[np.float32]]
SECONDS = 2.0


def clips_of(corpus: Corpus, *splits: Any) -> tuple[Clips, list[str], list[str]]:
    """Samples, labels and speakers of some splits."""
    chosen = [r for split in splits for r in corpus.select(split)]
    return (
        [corpus.samples(r).astype(np.float32) / 32768 for r in chosen],
        [corpus.labels[r.label_id - 1] for r in chosen],
        [corpus.speakers[r.speaker_id - 1] for r in chosen],
    )


def without_tail(wave: NDArray[np.float32], rate: int, ended: bool) -> NDArray[np.float32]:
    """A generated clip without the silence that precedes its end event."""
    tail = round(0.1 * rate)
    return wave[:-tail] if ended and len(wave) > 2 * tail else wave


def generate(
    generator: Generator, digits: list[str], seeds: list[int], batch: int, options: dict[str, Any]
) -> tuple[Clips, int]:
    """A clip a digit; how many did not end by themselves within two seconds."""
    made: Clips = []
    unended = 0
    rate = generator.config.rate
    for first in range(0, len(digits), batch):
        rows = digits[first : first + batch]
        result = generator.generate(
            SECONDS, label=rows, batch=len(rows), seed=seeds[first], **options
        )
        for wave, ended in zip(result.waveforms, result.ended, strict=True):
            unended += not ended
            wave = without_tail(wave, rate, bool(ended))
            made.append(wave if len(wave) else np.zeros(rate // 10, np.float32))
        print(f"{first + len(rows)} of {len(digits)} clips", file=sys.stderr, flush=True)
    return made, unended


def speakers_heard(
    training: Clips, names: list[str], generated: Clips, rate: int, seed: int
) -> dict[str, int]:
    """How many generated clips a classifier of speakers gives to each."""
    ears = ClipClassifier.fit(training, names, rate, seed=seed)
    called = Counter(ears.labels[c] for c in ears.hear(generated).called)
    return {name: called.get(name, 0) for name in ears.labels}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="run or model folder")
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--each", type=int, default=100, help="samples a digit")
    parser.add_argument("--samples", type=int, default=2048, help="for FID and the others")
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0])
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leave-one-out", action="store_true", help="also by speaker (minutes)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    corpus = corpus_of("digits", arguments.audio, arguments.work)
    training, digits, speakers = clips_of(corpus, "train")
    test, test_digits, _ = clips_of(corpus, "test")
    rate = corpus.rate
    start = time.perf_counter()
    ears = ClipClassifier.fit(training, digits, rate, seed=arguments.seed, device=device)
    result: dict[str, Any] = {
        "classifier": {
            "seconds": round(time.perf_counter() - start, 1),
            "digest": ears.digest,
            "test_accuracy": ears.accuracy(test, test_digits),
            "validation_accuracy": ears.accuracy(*clips_of(corpus, "val")[:2]),
        }
    }
    if arguments.leave_one_out:
        by_speaker = leave_one_out(
            training, digits, speakers, rate, seed=arguments.seed, device=device
        )
        result["classifier"]["leave_one_speaker_out"] = by_speaker
    print(json.dumps(result), file=sys.stderr, flush=True)
    reference = ears.hear(clips_of(corpus, "train", "val")[0])
    heard_test = ears.hear(test)
    result["real_test"] = distances(heard_test, reference).to_dict()
    generator = Generator.from_pretrained(arguments.model, device=device)
    order = [str(d) for d in corpus.labels for _ in range(arguments.each)]
    extra = max(0, arguments.samples - len(order))
    wanted = order + [corpus.labels[i % len(corpus.labels)] for i in range(extra)]
    seeds = list(range(arguments.seed, arguments.seed + len(wanted)))
    for temperature in arguments.temperature:
        options = {"temperature": temperature, "top_p": arguments.top_p}
        clips, unended = generate(generator, wanted, seeds, arguments.batch, options)
        heard = ears.hear(clips)
        counted = heard.called[: len(order)]
        right = np.array([ears.labels[c] == d for c, d in zip(counted, order, strict=True)])
        first_of_each = [order.index(digit) for digit in corpus.labels]
        real = [i for i, _ in enumerate(clips) if i < len(order)]
        part = Heard(heard.probabilities[real], heard.features[real])
        figures = {
            "temperature": temperature,
            "top_p": arguments.top_p,
            "clips": len(order),
            "recognised": float(right.mean()),
            "recognised_by_digit": {
                d: float(right[[o == d for o in order]].mean()) for d in corpus.labels
            },
            "unended": unended,
            "seconds_mean": float(np.mean([len(c) for c in clips]) / rate),
            "speakers": speakers_heard(training, speakers, [clips[i] for i in real], rate, 0),
            "memorisation": memorisation(
                [clips[i] for i in real], test, training, rate, device=device
            ).to_dict(),
            "distances": distances(heard, reference).to_dict(),
            "distances_of_counted": distances(part, reference).to_dict(),
        }
        result.setdefault("generated", []).append(figures)
        print(json.dumps(figures), file=sys.stderr, flush=True)
        folder = arguments.out / f"samples-{temperature:g}"
        folder.mkdir(exist_ok=True)
        for place in first_of_each:
            with WaveformWriter(folder / f"{wanted[place]}_seed{seeds[place]}.wav", rate) as out:
                out.write(clips[place])
    (arguments.out / "digits.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
