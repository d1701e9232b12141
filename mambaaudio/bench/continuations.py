"""Continuations of each test piece's first seconds, measured beside the real ones.

    python mambaaudio/bench/continuations.py --audio DIR --work DIR --out DIR --model FOLDER \\
        [--prompt 4] [--seconds 60] [--takes 4] [--budget 400] [--device cuda] \\
        [--core-temperature 0.5] [--candidates 8]

All pieces and takes are one batch, row i with seed i. Figures (`mambaaudio.music`):
second-by-second RMS over the prompt's (accepted .1 to 5), spectral flatness (below .02), onsets
per 10 s and chroma entropy (within the range of equally long stretches of all real pieces). The
real continuation is judged alike. Writes continuations.json, and of every take PIECE-TAKE.png
(spectrograms, real above generated) and PIECE-TAKE.flac.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import corpus_of
from numpy.typing import NDArray

from mambaaudio.corpus import Corpus
from mambaaudio.generator import Generator, Session
from mambaaudio.music import MusicFigures, figures
from mambaaudio.plots import save_figure
from mambaaudio.ranking import bits_per_sample
from mambaaudio.report_figures import pair_figure
from mambaaudio.writer import WaveformWriter
from mambacore.cache import atomic_write

Wave = NDArray[np.float32]
Ranges = dict[str, tuple[float, float]]
RMS_RANGE = (0.1, 5.0)
FLATNESS_LIMIT = 0.02


def waves(corpus: Corpus, split: Any) -> dict[str, Wave]:
    """Samples of the pieces of a split, by name."""
    return {
        r.path.stem: corpus.samples(r).astype(np.float32) / np.float32(32768)
        for r in (corpus.recordings if split == "all" else corpus.select(split))
    }


def real_range(corpus: Corpus, seconds: int) -> Ranges:
    """Smallest and largest figure over the stretches of `seconds` of all pieces."""
    size = seconds * corpus.rate
    stretches = [
        wave[start : start + size]
        for wave in waves(corpus, "all").values()
        for start in range(0, len(wave) - size + 1, size)
    ]
    with ThreadPoolExecutor() as pool:
        seen = list(pool.map(lambda wave: figures(wave, corpus.rate), stretches))
    return {
        name: (min(getattr(f, name) for f in seen), max(getattr(f, name) for f in seen))
        for name in ("flatness", "onsets", "chroma_entropy")
    }


def verdict(made: MusicFigures, real: Ranges) -> dict[str, bool]:
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


def judged(wave: Wave, prompt: Wave, rate: int, ranges: Ranges) -> dict[str, Any]:
    """Figures of a continuation and what they are worth."""
    measured = figures(wave, rate, prompt=prompt)
    return {
        **measured.to_dict(),
        "relative_rms": [round(float(x), 3) for x in measured.relative_rms],
        "accepted": verdict(measured, ranges),
    }


def continue_all(session: Session, seconds: float, budget: float) -> tuple[list[Wave], list[float]]:
    """The rows' next seconds, and bits a sample of each.

    Fewer seconds, but whole ones, where the budget is spent before.
    """
    begun = time.perf_counter()
    pieces: list[list[Wave]] = [[] for _ in session.seeds]
    made, said = 0, 0
    for block in session.blocks(seconds):
        for row, wave in enumerate(block.waveforms):
            pieces[row].append(wave)
        made, spent = made + len(block.waveforms[0]), time.perf_counter() - begun
        if made >= said + 5 * session.rate:
            said = made
            say(f"{made / session.rate:.0f} s of each in {spent:.0f} s, {made / spent:.0f} steps/s")
        if spent > budget and made >= session.rate:
            say(f"{budget:.0f} s are spent: {made // session.rate} s of each are judged")
            break
    whole = made // session.rate * session.rate
    bits = [bits_per_sample(float(total), made) for total in session.log_likelihood]
    return [np.concatenate(parts)[:whole] for parts in pieces], bits


def save(place: Path, prompt: Wave, real: Wave, made: Wave, rate: int) -> None:
    """A take's sound, and its spectrogram below the real one's."""
    real, made = np.concatenate([prompt, real]), np.concatenate([prompt, made])
    save_figure(pair_figure(real, made, rate, len(prompt) / rate), f"{place}.png")
    with WaveformWriter(f"{place}.flac", rate) as out:
        out.write(made)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, help="run or model folder; without: real only")
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=["val", "test"], default="test")
    parser.add_argument("--prompt", type=float, default=4.0, help="seconds that are heard")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--takes", type=int, default=4, help="of each piece")
    parser.add_argument("--budget", type=float, default=400.0, help="seconds of generating at most")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--core-temperature", type=float, default=1.0)
    parser.add_argument("--candidates", type=int, default=1, help="of each half second")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    device = torch.device(arguments.device)
    if device.index is not None:
        torch.cuda.set_device(device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    generator = None
    if arguments.model is not None:
        generator = Generator.from_pretrained(arguments.model, device=device)
    corpus = corpus_of("piano", arguments.audio, arguments.work)
    rate, seconds = corpus.rate, arguments.seconds
    heard = round(arguments.prompt * rate)
    pieces = waves(corpus, arguments.split)
    # The first take of every piece first: seeds do not depend on the number of takes.
    rows = [(name, take) for take in range(arguments.takes) for name in pieces]
    drawn = ("temperature", "top_p", "core_temperature", "candidates")
    sampling = {name: getattr(arguments, name) for name in drawn}
    made: list[Wave] = []
    bits, findings = [], []
    if generator is not None:
        prompts = [pieces[name][:heard] for name, _ in rows]
        session = generator.begin(prompts, batch=len(rows), seed=0, **sampling)
        made, bits = continue_all(session, seconds, arguments.budget)
        findings = [[str(finding) for finding in row] for row in session.findings]
        seconds = len(made[0]) // rate
    ranges = real_range(corpus, seconds)
    say(f"real pieces, by {seconds} s: {ranges}")
    real = {name: wave[heard : heard + seconds * rate] for name, wave in pieces.items()}
    result: dict[str, Any] = {
        "seconds": seconds,
        "prompt": arguments.prompt,
        **sampling,
        "real_range": ranges,
        "pieces": {
            name: {"real": judged(real[name], wave[:heard], rate, ranges), "generated": []}
            for name, wave in pieces.items()
        },
    }
    entries = []
    for row, (wave, (name, take)) in enumerate(zip(made, rows, strict=False)):
        prompt = pieces[name][:heard]
        entry = {"seed": row, "bits_per_sample": bits[row], "guard": findings[row]}
        entries.append(entry | judged(wave, prompt, rate, ranges))
        result["pieces"][name]["generated"].append(entries[-1])
        say(f"{name}, take {take}: {json.dumps(entries[-1])}")
        save(arguments.out / f"{name}-{take}", prompt, real[name], wave, rate)
    if entries:
        shares = {
            demand: float(np.mean([entry["accepted"][demand] for entry in entries]))
            for demand in entries[0]["accepted"]
        }
        shares["all"] = float(np.mean([all(entry["accepted"].values()) for entry in entries]))
        result["accepted"] = shares
        say(f"accepted, of {len(entries)} takes: {shares}")
    with atomic_write(arguments.out / "continuations.json", "w") as file:
        file.write(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
