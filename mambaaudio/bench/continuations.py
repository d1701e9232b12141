"""Continuations of each test piece's first seconds, measured beside the real ones.

    python mambaaudio/bench/continuations.py --model FOLDER --audio DIR --work DIR --out DIR \\
        [--prompt 4] [--seconds 60] [--seed 0] [--device cuda]

Figures (`mambaaudio.music`): second-by-second RMS over the prompt's (accepted .1 to 5), spectral
flatness (below .02), onsets per 10 s and chroma entropy (within the range of one-minute stretches
of all real pieces). Writes continuations.json, PIECE.png (spectrogram, real above generated) and
PIECE.flac.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import corpus_of
from numpy.typing import NDArray

from mambaaudio.corpus import Corpus
from mambaaudio.generator import Generator
from mambaaudio.music import MusicFigures, figures
from mambaaudio.report_figures import pair_figure
from mambaaudio.writer import WaveformWriter
from mambacore.cache import atomic_path

RMS_RANGE = (0.1, 5.0)
FLATNESS_LIMIT = 0.02


def real_range(corpus: Corpus, seconds: int) -> dict[str, tuple[float, float]]:
    """Smallest and largest figure over the stretches of `seconds` of all pieces."""
    rate = corpus.rate
    seen: list[MusicFigures] = []
    for recording in corpus.recordings:
        for start in range(0, recording.length - seconds * rate + 1, seconds * rate):
            wave = corpus.samples(recording, start, seconds * rate).astype(np.float32) / 32768
            seen.append(figures(wave, rate))
    return {
        name: (
            min(getattr(f, name) for f in seen),
            max(getattr(f, name) for f in seen),
        )
        for name in ("flatness", "onsets", "chroma_entropy")
    }


def verdict(made: MusicFigures, real: dict[str, tuple[float, float]]) -> dict[str, bool]:
    """Which of the demands hold."""
    relative = made.relative_rms
    return {
        "rms": bool(relative.min() >= RMS_RANGE[0] and relative.max() <= RMS_RANGE[1]),
        "flatness": made.flatness < FLATNESS_LIMIT,
        "onsets": real["onsets"][0] <= made.onsets <= real["onsets"][1],
        "chroma_entropy": real["chroma_entropy"][0]
        <= made.chroma_entropy
        <= real["chroma_entropy"][1],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, help="run or model folder; without: real only")
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--prompt", type=float, default=4.0)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    corpus = corpus_of("piano", arguments.audio, arguments.work)
    ranges = real_range(corpus, arguments.seconds)
    print(f"real pieces, by {arguments.seconds} s: {ranges}", file=sys.stderr, flush=True)
    result: dict[str, Any] = {"real_range": ranges, "pieces": {}}
    generator = None
    if arguments.model is not None:
        generator = Generator.from_pretrained(arguments.model, device=device)
    heard, total = round(arguments.prompt * corpus.rate), arguments.seconds * corpus.rate
    for number, recording in enumerate(corpus.select(arguments.split)):
        name, rate = recording.path.stem, corpus.rate
        wave = corpus.samples(recording).astype(np.float32) / 32768
        prompt, real = wave[:heard], wave[heard : heard + total]
        entry: dict[str, Any] = {"real": figures(real, rate, prompt=prompt).to_dict()}
        if generator is not None:
            made = generator.generate(
                arguments.seconds,
                prompt=prompt,
                temperature=arguments.temperature,
                top_p=arguments.top_p,
                seed=arguments.seed + number,
            )
            entry |= _judge(made.waveforms[0], prompt, real, rate, ranges, arguments.out / name)
            entry["bits_per_sample"] = made.bits_per_sample[0]
            entry["guard"] = [str(finding) for finding in made.findings[0]]
        result["pieces"][name] = entry
        print(f"{name}: {json.dumps(entry)}", file=sys.stderr, flush=True)
    with (
        atomic_path(arguments.out / "continuations.json") as beside,
        open(beside, "w", encoding="utf-8") as file,
    ):
        json.dump(result, file, indent=2)
    print(json.dumps(result, indent=2))
    return 0


def _judge(
    made: NDArray[np.float32],
    prompt: NDArray[np.float32],
    real: NDArray[np.float32],
    rate: int,
    ranges: dict[str, tuple[float, float]],
    place: Path,
) -> dict[str, Any]:
    measured = figures(made, rate, prompt=prompt)
    figure = pair_figure(
        np.concatenate([prompt, real]), np.concatenate([prompt, made]), rate, len(prompt) / rate
    )
    with atomic_path(place.with_suffix(".png")) as beside:
        figure.savefig(beside, format="png", metadata={"Software": None})
    with WaveformWriter(place.with_suffix(".flac"), rate) as out:
        out.write(np.concatenate([prompt, made]))
    accepted = verdict(measured, ranges)
    return {
        "generated": measured.to_dict(),
        "relative_rms": [round(float(x), 3) for x in measured.relative_rms],
        "accepted": accepted,
    }


if __name__ == "__main__":
    raise SystemExit(main())
