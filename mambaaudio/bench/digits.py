"""Label-conditioned samples of the digits: recognised, by whom, memorised, how far from real.

    python mambaaudio/bench/digits.py --audio DIR --work DIR --out DIR --model FOLDER \\
        [--each 100] [--samples 2048] [--settings temperature=1 guidance=2,speaker=none ...] \\
        [--device cuda]
    python mambaaudio/bench/digits.py --audio DIR --work DIR --out DIR --leave-one-out

A classifier is trained on the real training clips (takes 10 to 49). Then `--samples` clips are
drawn in the first setting, by default at temperature 1, given the label alone, clip i with seed i,
which also draws the speaker (`speaker=none` leaves it unsaid); the first `--each` a digit are all
counted, and all of them go into FID, IS, mIS and AM. The reference is every real clip outside
test, and real test clips stand beside as the floor. The other settings are drawn `--each` a digit.
Without a model: the classifier alone.
Writes digits.json and SETTING/*.wav, the first of each digit.
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
from mambaaudio.generator import ANY, Generator
from mambaaudio.memorisation import memorisation
from mambaaudio.writer import WaveformWriter
from mambacore.cache import atomic_write

Clips = list[NDArray[np.float32]]
SECONDS = 2.0
SETTINGS = ("temperature=1", "temperature=0.9", "speaker=none", "guidance=2")
DRAWN = ("temperature", "top_p", "guidance")


def clips_of(corpus: Corpus, *splits: Any) -> tuple[Clips, list[str], list[str]]:
    """Samples, labels and speakers of some splits."""
    chosen = [r for split in splits for r in corpus.select(split)]
    return (
        [corpus.samples(r).astype(np.float32) / np.float32(32768) for r in chosen],
        [corpus.labels[r.label_id - 1] for r in chosen],
        [corpus.speakers[r.speaker_id - 1] for r in chosen],
    )


def without_tail(wave: NDArray[np.float32], rate: int, ended: bool) -> NDArray[np.float32]:
    """A generated clip without the silence that precedes its end event."""
    tail = round(0.1 * rate)
    return wave[:-tail] if ended and len(wave) > 2 * tail else wave


def setting(text: str) -> dict[str, Any]:
    """``temperature=0.9,top_p=0.95,speaker=none`` as options; argparse names a wrong one."""
    options: dict[str, Any] = {"temperature": 1.0, "top_p": None, "guidance": 1.0, "untold": False}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if (name, value) == ("speaker", "none"):
            options["untold"] = True
        elif name in DRAWN:
            options[name] = float(value)
        else:
            raise ValueError(part)
    return options


def generate(
    generator: Generator, digits: list[str], seed: int, batch: int, options: dict[str, Any]
) -> tuple[Clips, int]:
    """A clip a digit, seeds from `seed` on; how many did not end within two seconds."""
    made: Clips = []
    unended = 0
    rate = generator.config.rate
    drawn = {name: options[name] for name in DRAWN}
    for first in range(0, len(digits), batch):
        rows = digits[first : first + batch]
        start = time.perf_counter()
        result = generator.generate(
            SECONDS,
            label=rows,
            speaker=None if options["untold"] else ANY,
            batch=len(rows),
            seed=seed + first,
            **drawn,
        )
        for wave, ended in zip(result.waveforms, result.ended, strict=True):
            unended += not ended
            wave = without_tail(wave, rate, bool(ended))
            made.append(wave if len(wave) else np.zeros(rate // 10, np.float32))
        say(f"{len(made)} of {len(digits)} clips, {time.perf_counter() - start:.1f} s the batch")
    return made, unended


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Ears:
    """The real clips, and the classifiers of digits and of speakers that they train."""

    def __init__(self, corpus: Corpus, seed: int, device: torch.device) -> None:
        self.rate, self.seed, self.device = corpus.rate, seed, device
        self.training, self.labels, self.names = clips_of(corpus, "train")
        self.validation, self.validation_labels, _ = clips_of(corpus, "val")
        self.test, self.test_labels, self.test_names = clips_of(corpus, "test")
        self.digits = self._fit(self.labels)

    def _fit(self, labels: list[str]) -> ClipClassifier:
        return ClipClassifier.fit(
            self.training, labels, self.rate, seed=self.seed, device=self.device
        )

    def quality(self, *, by_speaker: bool) -> dict[str, Any]:
        """Accuracy on real clips."""
        figures: dict[str, Any] = {
            "digest": self.digits.digest,
            "test_accuracy": self.digits.accuracy(self.test, self.test_labels),
            "validation_accuracy": self.digits.accuracy(self.validation, self.validation_labels),
        }
        if by_speaker:
            by = leave_one_out(
                self.training, self.labels, self.names, self.rate,
                seed=self.seed, device=self.device,
            )  # fmt: skip
            figures["leave_one_speaker_out"] = {**by, "mean": float(np.mean(list(by.values())))}
        return figures

    def know_speakers(self) -> float:
        """Train the classifier of speakers too; its accuracy on real test clips."""
        self.speakers = self._fit(self.names)
        return self.speakers.accuracy(self.test, self.test_names)

    def judge(self, clips: Clips, wanted: list[str], reference: Heard) -> dict[str, Any]:
        """Everything that is asked of clips that should be of these digits."""
        heard = self.digits.hear(clips)
        right = np.array([self.digits.labels[c] for c in heard.called]) == np.array(wanted)
        by = Counter(self.speakers.labels[c] for c in self.speakers.hear(clips).called)
        return {
            "clips": len(clips),
            "recognised": float(right.mean()),
            "recognised_by_digit": {
                digit: float(right[[w == digit for w in wanted]].mean())
                for digit in self.digits.labels
            },
            "seconds_mean": float(np.mean([len(c) for c in clips]) / self.rate),
            "speakers": {name: by.get(name, 0) for name in self.speakers.labels},
            "memorisation": memorisation(
                clips, self.test, self.training, self.rate, device=self.device
            ).to_dict(),
            "distances": distances(heard, reference).to_dict(),
        }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, help="run or model folder; without: classifier only")
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--each", type=int, default=100, help="counted samples a digit")
    parser.add_argument("--samples", type=int, default=2048, help="in all, in the first setting")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="how clips are drawn")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0, help="of the first clip")
    parser.add_argument("--leave-one-out", action="store_true", help="also by speaker (minutes)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    settings = {text: setting(text) for text in arguments.settings}
    device = torch.device(arguments.device)
    if device.index is not None:
        torch.cuda.set_device(device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    generator = None
    if arguments.model is not None:  # what is wrong with it is said before minutes of training
        generator = Generator.from_pretrained(arguments.model, device=device)
    corpus = corpus_of("digits", arguments.audio, arguments.work)
    begun = time.perf_counter()
    ears = Ears(corpus, arguments.seed, device)
    result: dict[str, Any] = {"classifier": ears.quality(by_speaker=arguments.leave_one_out)}
    result["classifier"]["seconds"] = round(time.perf_counter() - begun, 1)
    say(json.dumps(result))
    if generator is not None:
        result["classifier"]["speaker_test_accuracy"] = ears.know_speakers()
        reference = ears.digits.hear([*ears.training, *ears.validation])
        result["real_test"] = distances(ears.digits.hear(ears.test), reference).to_dict()
        say(json.dumps(result["real_test"]))
        result["generated"] = {}
        counted = [digit for digit in corpus.labels for _ in range(arguments.each)]
        more = max(0, arguments.samples - len(counted))
        for text, options in settings.items():
            extra = [corpus.labels[i % len(corpus.labels)] for i in range(more)]
            first = text == arguments.settings[0]
            wanted = counted + (extra if first else [])
            clips, unended = generate(generator, wanted, arguments.seed, arguments.batch, options)
            figures = ears.judge(clips[: len(counted)], counted, reference)
            figures["unended_share"] = unended / len(wanted)
            if first:
                heard = ears.digits.hear(clips)
                figures["distances_of_all"] = distances(heard, reference).to_dict()
            result["generated"][text] = figures
            say(f"{text}: {json.dumps(figures)}")
            _save(arguments.out / text, clips, wanted, arguments.seed, corpus.rate)
            _write(arguments.out, result)  # what there is, should the time run out
    _write(arguments.out, result)
    print(json.dumps(result, indent=2))
    return 0


def _save(folder: Path, clips: Clips, wanted: list[str], seed: int, rate: int) -> None:
    """The first clip of each digit."""
    folder.mkdir(exist_ok=True)
    for digit in sorted(set(wanted)):
        place = wanted.index(digit)
        with WaveformWriter(folder / f"{digit}_seed{seed + place}.wav", rate) as out:
            out.write(clips[place])


def _write(folder: Path, result: dict[str, Any]) -> None:
    with atomic_write(folder / "digits.json", "w") as file:
        file.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
