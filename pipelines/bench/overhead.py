"""What Lightning and the run's callbacks cost: a training through `train` against a bare loop.

`python pipelines/bench/overhead.py --out DIR` trains the species classifier both ways on the same
batches, which lie ready, so that the loader counts in neither. The bare loop does what a step
needs: transfer, forward, loss, backward, clipping, AdamW.

After one warm-up, which compiles, the two take turns, each going first every other turn; a turn is
a whole training of 20 to 200 timed steps (as many as fill 0.6 s, in twenties, because `train`
writes a row of metrics every 20) behind 5 that are not. Medians over the turns; the overhead is the
median of the turns' own. After `--limit` seconds no turn is begun, and rows without one are named.
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

# Of one width as far as can be: a width is 10 s of compilation.
ROWS = ((64, 2, 8, 1024), (64, 4, 64, 1024), (64, 8, 256, 1024), (256, 8, 1, 2**18))
TINY = ((8, 1, 2, 64),)
WARM_UP = 5
EVERY = 20  # steps between rows of metrics


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
    model: SpeciesClassifier, batches: list[Batch], steps: int, device: torch.device, half: bool
) -> float:
    """Milliseconds a step of a plain loop, of `steps` after the warm-up."""
    options = OptimizerOptions()
    model = model.to(device).train()
    optimizer = adamw(model, options)
    start = 0.0
    for number in range(WARM_UP + steps):
        if number == WARM_UP:
            start = wait(device)
        batch = batches[number % len(batches)]
        tokens, labels = (t.to(device, non_blocking=True) for t in (batch.tokens, batch.labels))
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = functional.cross_entropy(model(tokens).float(), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return 1e3 * (wait(device) - start) / steps


def through_train(
    model: SpeciesClassifier, batches: list[Batch], steps: int, device: torch.device, half: bool
) -> float:
    """Milliseconds a step of `mambapipelines.training.train`, of `steps` after the warm-up."""
    rows, window = batches[0].tokens.shape
    data = Ready(batches, window, rows)
    watch = Stopwatch(WARM_UP, WARM_UP + steps, device)
    plain = training.build_trainer
    training.build_trainer = lambda o, callbacks, run: plain(o, [*callbacks, watch], run)
    options = TrainerOptions(
        # One more than is timed: the last step writes a checkpoint.
        max_steps=WARM_UP + steps + 1, val_check_interval=10 * (WARM_UP + steps), patience=0,
        checkpointing="none", log_every_n_steps=EVERY,
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
    return 1e3 * (watch.times[1] - watch.times[0]) / steps


def make_batches(batch: int, window: int, pin: bool) -> list[Batch]:
    """Eight of random bases."""
    made = []
    for _ in range(8):
        tokens = torch.randint(0, 4, (batch, window), dtype=torch.uint8)
        one = Batch(tokens, torch.full((batch,), window), torch.randint(0, 2, (batch,)))
        made.append(Batch(*(t.pin_memory() for t in one)) if pin else one)
    return made


def steps_of(ms: float, seconds: float) -> int:
    """How many steps of `ms` milliseconds fill `seconds`, in whole rows of metrics."""
    return EVERY * min(10, max(1, round(1e3 * seconds / ms / EVERY)))


def compare(
    sizes: tuple[int, int, int, int], arguments: argparse.Namespace, begun: float,
    device: torch.device, half: bool,
) -> list[float]:  # fmt: skip
    """Turns, steps, ms of both, and the overhead: median ms, median %, lowest and highest %."""
    d_model, n_layer, batch, window = sizes
    config = ModelConfig(d_model=d_model, n_layer=n_layer)
    batches = make_batches(batch, window, pin=half)

    def model() -> SpeciesClassifier:
        return SpeciesClassifier(ClassifierConfig(config, labels=("a", "b")))

    steps = steps_of(bare(model(), batches, WARM_UP, device, half), arguments.seconds)
    loops: list[float] = []
    trained: list[float] = []
    for turn in range(arguments.turns):
        if turn and time.monotonic() - begun > arguments.limit:
            break
        sides = [(bare, loops), (through_train, trained)]
        for side, times in sides if turn % 2 == 0 else reversed(sides):
            times.append(side(model(), batches, steps, device, half))
    more = [high - low for low, high in zip(loops, trained, strict=True)]
    percent = [100 * ms / low for ms, low in zip(more, loops, strict=True)]
    figures = [statistics.median(values) for values in (loops, trained, more, percent)]
    return [len(loops), steps, *figures, min(percent), max(percent)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for overhead.csv")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rows", type=int, nargs="*", help=f"of {ROWS} (default: all)")
    parser.add_argument("--tiny", action="store_true", help="one small model, for a try on a CPU")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.6, help="of a side's turn")
    parser.add_argument("--limit", type=float, default=40, help="seconds, then no turn is begun")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    begun = time.monotonic()
    say_machine(device)
    half = device.type == "cuda"
    columns = ["d_model", "n_layer", "batch", "window", "turns", "steps", "bare_ms", "train_ms"]
    columns += ["overhead_ms", "overhead_percent", "lowest_percent", "highest_percent"]
    table = Table(arguments.out / "overhead.csv", columns)
    for number, sizes in enumerate(TINY if arguments.tiny else ROWS):
        if arguments.rows and number not in arguments.rows:
            continue
        if time.monotonic() - begun > arguments.limit:
            print(f"{sizes}: left out, the time is up", flush=True)
            continue
        table.add(*sizes, *compare(sizes, arguments, begun, device, half))
    print(f"{time.monotonic() - begun:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
