"""The comparison of mixers: every model by `compare.py`, one GPU each at a time, then a table.

    python mambaaudio/bench/comparison.py --data digits --audio DIR --work DIR --out DIR \\
        [--gpus 0,1,2,3] [--models mamba/mamba wavenet ...] [--lrs 1e-3 3e-3] [--seeds 3] \\
        [--budget SECONDS]

A model is first trained with every learning rate and seed 0; the rate with the fewest bits on
validation then trains the other seeds, and these and seed 0 are its row. Two models are tied where
the ranges of their seeds' validation bits overlap. What a run has written into --out is not run
again, so an interrupted comparison goes on, and --budget ends one before a training that would not
end in time. `--` passes options on to `compare.py`.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from compare import MODELS, SIZES

from mambapipelines.recipes.results import markdown

HERE = Path(__file__).resolve().parent
COLUMNS = ("model", "parameters", "lr", "steps", "val bits", "lowest", "highest", "test bits")
# What a training takes beside its own time, until one has told.
_BESIDE = 60.0


class Job(NamedTuple):
    """One training."""

    model: str
    lr: float
    seed: int


class Trainings:
    """What was trained so far, and what is to be trained next."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self._running: set[Job] = set()
        self._failed: set[Job] = set()
        self._changed = threading.Condition()
        self._begun = time.monotonic()
        self._took: list[float] = []
        self.failures: list[str] = []

    def path(self, job: Job) -> Path:
        """The file of a training."""
        name = f"{self.options.data}-{job.model.replace('/', '-')}-{job.lr:g}-{job.seed}.csv"
        return self.options.out / name

    def rows(self, model: str) -> list[dict[str, str]]:
        """What is known of a model."""
        found = []
        for path in sorted(self.options.out.glob(f"{self.options.data}-*.csv")):
            with open(path, newline="") as file:
                found += [row for row in csv.DictReader(file) if row["name"] == model]
        return found

    def chosen(self, model: str) -> list[dict[str, str]]:
        """The runs at the best of the learning rates tried, a seed each."""
        rows = self.rows(model)
        first = [row for row in rows if row["seed"] == "0"]
        if not first:
            return []
        best = float(min(first, key=lambda row: float(row["val_bits"]))["lr"])
        return [row for row in rows if float(row["lr"]) == best]

    def _due(self, model: str) -> Iterator[Job]:
        """A model's trainings that could begin now."""
        first = [Job(model, lr, 0) for lr in self.options.lrs]
        # A training under way may have begun its file.
        missing = [job for job in first if job in self._running or not self.path(job).is_file()]
        if missing:
            yield from missing
            return
        best = float(self.chosen(model)[0]["lr"])
        further = [Job(model, best, seed) for seed in range(1, self.options.seeds)]
        yield from (job for job in further if not self.path(job).is_file())

    def _next(self) -> Job | None:
        """Waits for learning rates under way; None when nothing is left, or no time."""
        while True:
            ahead = max(self._took, default=self.options.seconds + _BESIDE)
            ends = time.monotonic() - self._begun + ahead
            if self.options.budget is not None and ends > self.options.budget:
                return None
            for model in self.options.models:
                for job in self._due(model):
                    if job not in self._running | self._failed:
                        self._running.add(job)
                        return job
            if not self._running:
                return None
            self._changed.wait(1.0)

    def work(self, gpu: str) -> None:
        """Train on one GPU as long as there is something to do."""
        while True:
            with self._changed:
                job = self._next()
            if job is None:
                return
            start = time.monotonic()
            try:
                self._train(gpu, job)
            except (subprocess.SubprocessError, OSError) as error:
                self._failed.add(job)
                self.failures.append(f"{job.model}, lr {job.lr:g}, seed {job.seed}: {error}")
            with self._changed:
                self._took.append(time.monotonic() - start)
                self._running.discard(job)
                self._changed.notify_all()

    def _train(self, gpu: str, job: Job) -> None:
        options = self.options
        command = [
            sys.executable, str(HERE / "compare.py"), "--data", options.data, "--model", job.model,
            "--audio", str(options.audio), "--work", str(options.work), "--lr", str(job.lr),
            "--seed", str(job.seed), "--seconds", str(options.seconds), "--test",
            "--out", str(self.path(job)), "--device", f"cuda:{gpu}" if gpu else "cpu",
            *options.rest,
        ]  # fmt: skip
        subprocess.run(command, check=True, timeout=options.seconds + 600)


def table(lanes: Sequence[tuple[str, list[dict[str, str]]]]) -> list[list[str]]:
    """Rows from the fewest validation bits on; those tied with the first are marked."""
    found = []
    for model, rows in lanes:
        bits = [float(row["val_bits"]) for row in rows]
        test = [float(row["test_bits"]) for row in rows if row["test_bits"]]
        found.append((statistics.mean(bits), min(bits), max(bits), test, rows[0], model))
    found.sort(key=lambda entry: entry[0])
    lines = [list(COLUMNS)]
    for mean, low, high, test, row, model in found:
        tied = " (tied)" if lines[1:] and low <= found[0][2] else ""
        heard = f"{statistics.mean(test):.3f}" if test else "-"
        figures = [f"{mean:.3f}", f"{low:.3f}", f"{high:.3f}", heard]
        lines.append([model + tied, row["parameters"], row["lr"], row["steps"], *figures])
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", choices=tuple(SIZES), required=True)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the trainings' CSV files"
    )
    parser.add_argument("--gpus", default="0", help="numbers, or nothing for the CPU")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--lrs", nargs="+", type=float, default=[1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--budget", type=float, help="seconds for all of it")
    parser.add_argument("rest", nargs="*", help="behind --: further options of compare.py")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    # Decoded once, before several processes ask for it.
    prepare = ["--data", options.data, "--audio", str(options.audio), "--work", str(options.work)]
    subprocess.run(
        [sys.executable, str(HERE / "compare.py"), *prepare, "--out", "-", "--prepare"], check=True
    )
    trainings = Trainings(options)
    workers = [
        threading.Thread(target=trainings.work, args=(gpu,)) for gpu in options.gpus.split(",")
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lanes = [(model, trainings.chosen(model)) for model in options.models]
    print(markdown(table([lane for lane in lanes if lane[1]])))
    for line in trainings.failures:
        print(f"comparison: {line}", file=sys.stderr)
    return 1 if trainings.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
