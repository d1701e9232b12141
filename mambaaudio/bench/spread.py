"""Is what a model expects as wide as what happens? Far symbols are clicks when they are drawn.

    python mambaaudio/bench/spread.py --data piano --audio DIR --work DIR --model FOLDER \\
        [--split val] [--start 20] [--seconds 2] [--costs 0,0 0.004,0 0,25]

On held-out recordings: bits, standard deviation of what is expected and error of its mean (steps
of the code), and how often a second a sample lies further than so many steps from the mean, as
expected and as it happens; by recording, or of all with --all. Rows of a cost "penalty,limit" are
what `--model.spread_penalty` and `--model.jump_limit` would make of the same model: p_k falls to
p_k / (1 + penalty d_k^2 + (d_k / limit)^4).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from data import NAMES, corpus_of
from torch import Tensor

from mambaaudio.corpus import Corpus, Recording
from mambaaudio.model import WaveformModel
from mambaaudio.rows import Coder, Layout
from mambapipelines.recipes.results import markdown

# Samples before the first that is looked at.
_HEARD = 8192


@torch.no_grad()
def expected(
    model: WaveformModel, corpus: Corpus, recording: Recording, start: float, seconds: float
) -> tuple[Tensor, Tensor]:
    """Probabilities (L, levels) of each sample of a stretch without the end event, and its codes
    (L,). A recording that ends before the stretch does is taken from its beginning."""
    rate, config = corpus.rate, model.config
    first, count = round(start * rate), round(seconds * rate)
    first = first if first + count <= recording.length else 0
    count = min(count, recording.length)
    before = min(first, _HEARD)
    samples = corpus.samples(recording, first - before, before + count)
    codes = Coder(corpus, Layout(config.code)).encode(samples, recording.gain)
    heard = torch.from_numpy(codes).long()[None].to(model.device)
    # Numbers of another corpus mean something else: names are looked up.
    label = corpus.labels[recording.label_id - 1] if config.labels else None
    speaker = corpus.speakers[recording.speaker_id - 1] if config.speakers else None
    logits, _ = model(
        model.shift(heard),
        label=torch.tensor([config.label_id(label)], device=model.device),
        speaker=torch.tensor([config.speaker_id(speaker)], device=model.device),
    )
    return logits[0, before:, : config.levels].float().softmax(-1), heard[0, before:]


def figures(
    p: Tensor, codes: Tensor, cost: tuple[float, float], rate: int, beyond: list[int]
) -> list[str]:
    """A row of the table."""
    levels, came = torch.arange(p.shape[1], device=p.device), codes[:, None]
    penalty, limit = cost
    away = (levels - (p * levels).sum(-1, keepdim=True)).square()
    q = p / (1 + penalty * away + (away.square() / limit**4 if limit else 0))
    q = q / q.sum(-1, keepdim=True)
    mean = (q * levels).sum(-1, keepdim=True)
    away, error = (levels - mean).abs(), (came - mean).abs()
    found = [
        -q.gather(1, came).log2().mean(),
        (q * away.square()).sum(-1).mean().sqrt(),
        error.square().mean().sqrt(),
    ]
    jumps = [((q * (away > d)).sum(-1).mean(), (error > d).float().mean()) for d in beyond]
    cells = [f"{float(value):.3f}" for value in found]
    return cells + [f"{rate * float(e):.2f} / {rate * float(h):.2f}" for e, h in jumps]


def pair(text: str) -> tuple[float, float]:
    """``penalty,limit``; argparse names a wrong one."""
    penalty, limit = map(float, text.split(","))
    return penalty, limit


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", choices=NAMES, required=True)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="run or model folder")
    parser.add_argument("--split", choices=["train", "val", "test"], default="val")
    parser.add_argument("--recordings", type=int, default=24, help="at most, spread evenly")
    parser.add_argument("--start", type=float, default=20.0, help="seconds into a recording")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--costs", nargs="+", type=pair, default=[(0, 0), (0.004, 0), (0, 25)])
    parser.add_argument("--beyond", nargs="+", type=int, default=[10, 20, 40])
    parser.add_argument("--all", action="store_true", help="one row for all recordings")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    model = WaveformModel.from_pretrained(arguments.model, device=arguments.device)
    corpus = corpus_of(arguments.data, arguments.audio, arguments.work)
    chosen = corpus.select(arguments.split)
    chosen = chosen[:: -(-len(chosen) // arguments.recordings)]
    parts = {
        recording.path.stem: expected(model, corpus, recording, arguments.start, arguments.seconds)
        for recording in chosen
    }
    if arguments.all:
        joined = [torch.cat(part) for part in zip(*parts.values(), strict=True)]
        parts = {"all": (joined[0], joined[1])}
    jumps = [f"beyond {d}, expected / heard" for d in arguments.beyond]
    lines = [["recording", "penalty, limit", "bits", "expected std", "error", *jumps]]
    for name, (p, codes) in parts.items():
        for cost in arguments.costs:
            found = figures(p, codes, cost, corpus.rate, arguments.beyond)
            lines.append([name, "{:g}, {:g}".format(*cost), *found])
    print(markdown(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
