"""The comparison of mixers: every model by `compare.py`, one GPU each at a time, then a table.

    python mambaaudio/bench/comparison.py --data digits --audio DIR --work DIR --out DIR \\
        [--gpus 0,1,2,3] [--models mamba/mamba wavenet ...] [--lrs 1e-3 3e-3] [--seeds 3]

A model is first trained with every learning rate and seed 0; the rate with the fewest bits on
validation then trains the other seeds, and these and seed 0 are its row. The test part is read for
the rows alone. Two models are tied where the ranges of their seeds' validation bits overlap. What a
run has written into --out is not run again, so an interrupted comparison goes on. `--` passes
options on to `compare.py`.
"""

from __future__ import annotations

import argparse
import csv
import queue
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from compare import MODELS, SIZES

from mambapipelines.recipes.results import markdown

HERE = Path(__file__).resolve().parent
COLUMNS = ("model", "parameters", "lr", "steps", "val bits", "lowest", "highest", "test bits")


class Lane:
    """The trainings of one model, one after the other."""

    def __init__(self, options: argparse.Namespace, model: str) -> None:
        self.options, self.model = options, model
        self.path: Path = options.out / f"{options.data}-{model.replace('/', '-')}.csv"

    def rows(self) -> list[dict[str, str]]:
        """What was trained so far."""
        if not self.path.is_file():
            return []
        with open(self.path, newline="") as file:
            return list(csv.DictReader(file))

    def chosen(self) -> list[dict[str, str]]:
        """The runs at the best learning rate, a seed each."""
        first = [row for row in self.rows() if row["seed"] == "0"]
        best = min(first, key=lambda row: float(row["val_bits"]))["lr"]
        return [row for row in self.rows() if row["lr"] == best]

    def run(self, gpu: str) -> None:
        """Everything that is missing."""
        for lr in self.options.lrs:
            self._train(gpu, lr, 0, test=False)
        best = float(self.chosen()[0]["lr"])
        for seed in range(1, self.options.seeds):
            self._train(gpu, best, seed, test=True)

    def _train(self, gpu: str, lr: float, seed: int, *, test: bool) -> None:
        if any(float(r["lr"]) == lr and int(r["seed"]) == seed for r in self.rows()):
            return
        options = self.options
        command = [
            sys.executable, str(HERE / "compare.py"), "--data", options.data, "--model", self.model,
            "--audio", str(options.audio), "--work", str(options.work), "--lr", str(lr),
            "--seed", str(seed), "--seconds", str(options.seconds), "--out", str(self.path),
            "--device", f"cuda:{gpu}" if gpu else "cpu", *(["--test"] if test else []),
            *options.rest,
        ]  # fmt: skip
        subprocess.run(command, check=True, timeout=options.seconds + 600)


def table(lanes: Sequence[Lane]) -> list[list[str]]:
    """Rows from the fewest validation bits on; those tied with the first are marked."""
    found = []
    for lane in lanes:
        rows = lane.chosen()
        bits = [float(row["val_bits"]) for row in rows]
        test = [float(row["test_bits"]) for row in rows if row["test_bits"]]
        found.append((statistics.mean(bits), min(bits), max(bits), test, rows[0], lane.model))
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
    parser.add_argument("--out", type=Path, required=True, help="folder of the models' CSV files")
    parser.add_argument("--gpus", default="0", help="numbers, or nothing for the CPU")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--lrs", nargs="+", type=float, default=[1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("rest", nargs="*", help="behind --: further options of compare.py")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    lanes = [Lane(options, model) for model in options.models]
    # Decoded once, before several processes ask for it.
    prepare = ["--data", options.data, "--audio", str(options.audio), "--work", str(options.work)]
    subprocess.run(
        [sys.executable, str(HERE / "compare.py"), *prepare, "--out", "-", "--prepare"], check=True
    )
    waiting: queue.SimpleQueue[Lane] = queue.SimpleQueue()
    for lane in lanes:
        waiting.put(lane)
    failed: list[str] = []

    def work(gpu: str) -> None:
        while True:
            try:
                lane = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                lane.run(gpu)
            except (subprocess.SubprocessError, OSError) as error:
                failed.append(f"{lane.model}: {error}")

    workers = [threading.Thread(target=work, args=(gpu,)) for gpu in options.gpus.split(",")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    done = [lane for lane in lanes if any(row["seed"] == "0" for row in lane.rows())]
    print(markdown(table(done)))
    for line in failed:
        print(f"comparison: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
