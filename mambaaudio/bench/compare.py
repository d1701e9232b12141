"""One row of the comparison at equal parameters and equal time: train, then bits per sample.

    python mambaaudio/bench/compare.py --data digits --audio DIR --work DIR --model s4d/mamba \\
        --lr 2e-3 --seed 0 --seconds 90 --device cuda:0 --out digits-s4d-mamba-0.csv

The clock runs for the training steps alone: kernels are compiled and steps recorded before it
starts, on steps that are undone. Start several at once, one a GPU, each with its own --out; rows
are appended. --test also reads the test part; --save keeps the model (not WaveNet) for the other
benchmarks.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import queue
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import NAMES, corpus_of, layout_of
from torch import Tensor
from wavenet import WaveNet

from mambaaudio.bits import Scorer
from mambaaudio.corpus import Corpus
from mambaaudio.model import WaveformModel
from mambaaudio.model_config import WaveformConfig
from mambaaudio.rows import Coder, Layout
from mambaaudio.windows import TrainingWindows
from mambacore.multiscale import MultiScaleConfig
from mambacore.optim import parameter_groups
from mambapipelines.audio.module import WaveformLoss
from mambapipelines.replay import ReplayedLoss
from mambapipelines.schedule import Stage, learning_rate_factor, length_stages, stage_at

# Outer / centre mixers; an MLP of 1.35 widths beside S4D brings all to 6.2 M parameters, as in the
# shipped configurations.
UNETS: dict[str, dict[str, Any]] = {
    "s4d/s4d": {"mixers": ("s4d", "s4d", "s4d"), "mlp_expand": (1.35, 1.35, 1.35)},
    "s4d/mamba": {"mixers": ("s4d", "s4d", "mamba"), "mlp_expand": (1.35, 1.35, 0.0)},
    "mamba/s4d": {"mixers": ("mamba", "mamba", "s4d"), "mlp_expand": (0.0, 0.0, 1.35)},
    "mamba/mamba": {"mixers": ("mamba", "mamba", "mamba")},
}
MODELS = (*UNETS, "wavenet")
# Window and samples a step.
# Batches that are looked at for their shape before the clock starts.
_TRIED = 200
SIZES = {"digits": (16_384, 131_072), "piano": (131_072, 262_144)}


def build(
    name: str, corpus: Corpus, layout: Layout, changes: dict[str, Any]
) -> WaveformModel | WaveNet:
    """A model by its name in the table; `changes` replace backbone settings."""
    backbone = {"d_model": 64, "pools": (4, 4), **UNETS.get(name, UNETS["mamba/mamba"]), **changes}
    config = WaveformConfig(
        rate=corpus.rate,
        code=layout.code,
        backbone=MultiScaleConfig(**backbone),
        labels=corpus.labels,
        speakers=corpus.speakers,
        end_event=layout.clips,
        gain=corpus.gain,
    )
    return WaveNet(config) if name == "wavenet" else WaveformModel(config)


@dataclass(frozen=True)
class Settings:
    """How to train."""

    lr: float
    seed: int
    seconds: float
    stages: tuple[Stage, ...]
    warmup: float = 0.1
    weight_decay: float = 0.1
    clip: float = 1.0
    hide: float = 0.1
    hide_speaker: float = 0.2
    max_steps: int | None = None


def batches(
    windows: TrainingWindows, stage: Any, stop: threading.Event, pin: bool
) -> Iterator[list[Tensor]]:
    """Batches prepared by a thread, a few ahead. `stage()` says which window and batch are due."""
    ready: queue.Queue[list[Tensor] | BaseException] = queue.Queue(4)

    def work() -> None:
        step = 0
        while not stop.is_set():
            due = stage()
            try:
                batch = windows.batch(step, 0, 1, due.batch, due.window)
                made: Any = [torch.from_numpy(np.ascontiguousarray(part)) for part in batch]
                made = [part.pin_memory() for part in made] if pin else made
            except BaseException as error:
                made = error
            while not stop.is_set():
                try:
                    ready.put(made, timeout=0.2)
                    break
                except queue.Full:
                    continue
            step += 1

    threading.Thread(target=work, daemon=True).start()
    while True:
        item = ready.get()
        if isinstance(item, BaseException):
            raise item
        yield item


def train(
    model: torch.nn.Module,
    corpus: Corpus,
    layout: Layout,
    settings: Settings,
    told: bool,
    log: Any = print,
) -> dict[str, float]:
    """Train for `settings.seconds` on the model's device; returns steps, samples, last loss."""
    device = next(model.parameters()).device
    torch.manual_seed(settings.seed)
    model.train()
    groups = parameter_groups(model, settings.weight_decay)
    options: dict[str, Any] = {"lr": settings.lr, "betas": (0.9, 0.95), "fused": True}
    optimiser = torch.optim.AdamW(groups, **options)
    # As `mambaaudio fit --trainer.cuda_graphs true` does: every model here has many small layers.
    face: Any = model
    replayed = ReplayedLoss(partial(WaveformLoss, face, settings.hide, settings.hide_speaker))
    replayed.enabled = device.type == "cuda"
    fraction = 0.0
    stop = threading.Event()
    windows = TrainingWindows(corpus, layout, seed=settings.seed)
    source = batches(
        windows, lambda: stage_at(settings.stages, fraction), stop, device.type == "cuda"
    )

    def step(batch: list[Tensor]) -> Tensor:
        codes, mask, counted, *names = (part.to(device, non_blocking=True) for part in batch)
        label, speaker = names if told else [torch.zeros_like(name) for name in names]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss, _ = replayed(codes, mask, counted, label, speaker)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    before = copy.deepcopy((model.state_dict(), optimiser.state_dict()))
    warm = TrainingWindows(corpus, layout, seed=settings.seed + 1)
    shapes = set()
    for stage in settings.stages:  # compile and record every shape, then undo
        for number in range(_TRIED):
            batch = warm.batch(number, 0, 1, stage.batch, stage.window)
            if batch.codes.shape not in shapes:
                shapes.add(batch.codes.shape)
                step([torch.from_numpy(np.ascontiguousarray(part)) for part in batch])
    model.load_state_dict(before[0])
    optimiser.load_state_dict(before[1])
    _wait(device)
    torch.manual_seed(settings.seed)
    start, steps, samples, loss = time.perf_counter(), 0, 0, torch.zeros(())
    pace = 0.0
    for batch in source:
        elapsed = time.perf_counter() - start
        fraction = min((elapsed + pace) / settings.seconds, 1.0)
        if settings.max_steps is not None:
            fraction = max(fraction, steps / settings.max_steps)
        if fraction >= 1:
            break
        rate = settings.lr * learning_rate_factor(max(fraction, 1e-4), settings.warmup, 0.0)
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = step(batch)
        steps += 1
        samples += int(batch[2].sum())
        if steps % 8 == 0:  # the queue of kernels must not run ahead of the clock
            _wait(device)
            pace = (time.perf_counter() - start) / steps
        if steps % 100 == 0:
            log(f"step {steps} {elapsed:.1f} s loss {loss.item() / math.log(2):.4f} bits")
    _wait(device)
    stop.set()
    replayed.clear()
    model.eval()
    return {
        "steps": steps,
        "samples": samples,
        "seconds": time.perf_counter() - start,
        "loss": loss.item() / math.log(2),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def split_bits(
    model: Any, corpus: Corpus, layout: Layout, split: Any, told: bool, chunk: int | None = None
) -> tuple[float, dict[str, float]]:
    """Bits per real sample of a split in float32, whole recordings with carried state; by file."""
    scorer = Scorer(model, chunk=chunk)
    coder = Coder(corpus, layout)
    recordings = corpus.select(split)
    codes = [coder.encode(corpus.samples(r), r.gain) for r in recordings]
    labels = [r.label_id if told else 0 for r in recordings]
    speakers = [r.speaker_id if told else 0 for r in recordings]
    costs = scorer.batch(codes, labels, speakers)
    total = sum(float(c.sum()) for c in costs) / sum(len(c) for c in costs)
    return total, {
        r.path.stem: float(c.mean()) for r, c in zip(recordings, costs, strict=True) if len(c)
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", choices=NAMES, required=True)
    parser.add_argument("--audio", type=Path, required=True, help="folder of the real recordings")
    parser.add_argument("--work", type=Path, required=True, help="folder for decoded samples")
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--backbone", type=json.loads, default={}, help="JSON of other settings")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--max-steps", type=int, help="stop earlier (for tests)")
    parser.add_argument("--window", type=int)
    parser.add_argument("--tokens", type=int, help="samples a step")
    parser.add_argument("--first-window", type=int, help="shortest window of a length warm-up")
    parser.add_argument("--length-warmup", type=float, default=0.0, help="its part of the time")
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--untold", action="store_true", help="no labels and speakers at all")
    parser.add_argument("--test", action="store_true", help="also read the test part")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True, help="CSV file that a row is added to")
    parser.add_argument("--save", type=Path, help="folder to export the model to")
    parser.add_argument("--prepare", action="store_true", help="decode the recordings and end")
    arguments = parser.parse_args(argv)
    corpus = corpus_of(arguments.data, arguments.audio, arguments.work)
    if arguments.prepare:
        return 0
    if arguments.model is None:
        parser.error("--model is missing")
    device = torch.device(arguments.device)
    if device.index is not None:
        torch.cuda.set_device(device)
    layout = layout_of(arguments.data, corpus)
    window, tokens = SIZES[arguments.data]
    window, tokens = arguments.window or window, arguments.tokens or tokens
    stages = length_stages(
        window, tokens, arguments.first_window or window, arguments.length_warmup
    )
    settings = Settings(
        arguments.lr, arguments.seed, arguments.seconds, tuple(stages), clip=arguments.clip,
        weight_decay=arguments.weight_decay, max_steps=arguments.max_steps,
    )  # fmt: skip
    torch.manual_seed(arguments.seed)
    model = build(arguments.model, corpus, layout, arguments.backbone).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    told = bool(corpus.labels) and not arguments.untold
    tag = f"{arguments.data} {arguments.model} lr {arguments.lr} seed {arguments.seed}"

    def log(text: str) -> None:
        print(f"{tag}: {text}", file=sys.stderr, flush=True)

    log(f"{parameters:,} parameters")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    facts = train(model, corpus, layout, settings, told, log)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else math.nan
    row: dict[str, Any] = {
        "data": arguments.data,
        "name": arguments.model,
        "backbone": json.dumps(arguments.backbone),
        "parameters": parameters,
        "lr": arguments.lr,
        "seed": arguments.seed,
        "window": window,
        "tokens": tokens,
        "seconds": round(facts["seconds"], 2),
        "steps": facts["steps"],
        "samples": facts["samples"],
        "peak_gib": round(peak, 2),
        "train_bits": round(facts["loss"], 4),
        "val_bits": round(split_bits(model, corpus, layout, "val", told)[0], 4),
        "val_bits_untold": "",
        "test_bits": "",
        "test_bits_untold": "",
        "test_files": "",
    }
    if told:
        row["val_bits_untold"] = round(split_bits(model, corpus, layout, "val", False)[0], 4)
    if arguments.test:
        row["test_bits"], files = split_bits(model, corpus, layout, "test", told)
        row["test_bits"] = round(row["test_bits"], 4)
        if len(files) < 10:
            row["test_files"] = json.dumps({k: round(v, 4) for k, v in files.items()})
        if told:
            row["test_bits_untold"] = round(split_bits(model, corpus, layout, "test", False)[0], 4)
    _append(arguments.out, row)
    log(f"val {row['val_bits']} bits, {row['steps']} steps, test {row['test_bits'] or 'not read'}")
    if arguments.save and isinstance(model, WaveformModel):
        model.save_pretrained(arguments.save)
    return 0


def _append(path: Path, row: dict[str, Any]) -> None:
    new = not path.is_file()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    raise SystemExit(main())
