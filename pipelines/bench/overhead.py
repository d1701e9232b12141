"""What Lightning and the run's callbacks cost: a training through `train` against a bare loop.

`python pipelines/bench/overhead.py --out DIR` trains the species classifier both ways on the same
batches, which lie ready, so that the loader counts in neither. The bare loop does what a step
needs: transfer, forward, loss, backward, clipping, AdamW. The two take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import Table, say_machine, wait  # pyright: ignore[reportMissingImports]  beside this script
from lightning.pytorch import Callback
from torch.nn import functional
from torch.utils.data import DataLoader

from mambabio.classifier import SpeciesClassifier
from mambabio.classifier_config import ClassifierConfig
from mambacore import ModelConfig
from mambapipelines import training
from mambapipelines.bio.data import Batch
from mambapipelines.bio.module import SpeciesModule
from mambapipelines.optimizers import adamw
from mambapipelines.options import OptimizerOptions, TrainerOptions
from mambapipelines.runs import Run
from mambapipelines.schedule import Stage
from mambapipelines.training import StepData

ROWS = ((64, 2, 8, 1024), (128, 4, 64, 1024), (192, 4, 256, 1024), (256, 8, 1, 2**18))


class Ready(StepData):
    """Batches that lie in memory."""

    def __init__(self, batches: list[Batch], window: int, batch: int) -> None:
        super().__init__()
        self._batches = batches
        self.stages = (Stage(0.0, window, batch),)

    def batch_maker(self):
        """By number, over and over."""
        return lambda number, window, batch: self._batches[number % len(self._batches)]

    def val_dataloader(self) -> DataLoader | list:
        """None."""
        return []


class Stopwatch(Callback):
    """When steps ended; waits for the device only at the two ends."""

    def __init__(self, first: int, last: int, device: torch.device) -> None:
        self._ends, self._device = {first, last}, device
        self.times: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Note the time at the two ends."""
        if batch_idx + 1 in self._ends:
            self.times.append(wait(self._device))


def bare(
    model: SpeciesClassifier, batches: list[Batch], steps: int, skip: int, device: torch.device,
    half: bool,
) -> float:  # fmt: skip
    """Milliseconds a step of a plain loop."""
    options = OptimizerOptions()
    model = model.to(device).train()
    optimizer = adamw(model, options)
    start = 0.0
    for number in range(steps):
        if number == skip:
            start = wait(device)
        batch = batches[number % len(batches)]
        tokens, labels = (t.to(device, non_blocking=True) for t in (batch.tokens, batch.labels))
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = functional.cross_entropy(model(tokens).float(), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return 1e3 * (wait(device) - start) / (steps - skip)


def through_train(
    model: SpeciesClassifier, data: Ready, steps: int, skip: int, device: torch.device, half: bool
) -> float:
    """Milliseconds a step of `mambapipelines.training.train`."""
    watch = Stopwatch(skip, steps, device)
    plain = training.build_trainer
    training.build_trainer = lambda o, callbacks, run: plain(o, [*callbacks, watch], run)
    options = TrainerOptions(
        max_steps=steps, val_check_interval=10 * steps, patience=0, checkpointing="none",
        accelerator="gpu" if device.type == "cuda" else "cpu",
        precision="bf16-mixed" if half else "32-true", threads=torch.get_num_threads(),
    )  # fmt: skip
    optimizer = OptimizerOptions()
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = Run.create(Path(folder) / "run")
            training.train(
                SpeciesModule(model, optimizer), data, run, seed=0,
                trainer_options=options, optimizer_options=optimizer,
            )  # fmt: skip
            run.release()
    finally:
        training.build_trainer = plain
    return 1e3 * (watch.times[1] - watch.times[0]) / (steps - skip)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for overhead.csv")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rows", type=int, nargs="*", help=f"of {ROWS} (default: all)")
    parser.add_argument("--tiny", action="store_true", help="one small model, for a try on a CPU")
    parser.add_argument("--steps", type=int, default=220)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    say_machine(device)
    half = device.type == "cuda"
    columns = ["d_model", "n_layer", "batch", "window", "bare_ms", "train_ms", "overhead_ms"]
    table = Table(arguments.out / "overhead.csv", [*columns, "overhead_percent"])
    begun, rows = time.monotonic(), ((8, 1, 2, 64),) if arguments.tiny else ROWS
    for number, (d_model, n_layer, batch, window) in enumerate(rows):
        if arguments.rows and number not in arguments.rows:
            continue
        config = ModelConfig(d_model=d_model, n_layer=n_layer)
        batches = []
        for _ in range(8):
            tokens = torch.randint(0, 4, (batch, window), dtype=torch.uint8)
            made = Batch(tokens, torch.full((batch,), window), torch.randint(0, 2, (batch,)))
            batches.append(Batch(*(t.pin_memory() for t in made)) if half else made)
        loops: list[float] = []
        trained: list[float] = []
        steps, skip = arguments.steps, arguments.steps // 5
        for _ in range(arguments.turns):
            model = SpeciesClassifier(ClassifierConfig(config, labels=("a", "b")))
            loops.append(bare(model, batches, steps, skip, device, half))
            data = Ready(batches, window, batch)
            trained.append(through_train(model.cpu(), data, steps, skip, device, half))
        low, high = statistics.median(loops), statistics.median(trained)
        table.add(
            d_model, n_layer, batch, window, low, high, high - low, 100 * (high - low) / low
        )  # fmt: skip
    print(f"{time.monotonic() - begun:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
