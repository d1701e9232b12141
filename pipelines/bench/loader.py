"""Positions a second that the data loaders deliver, by number of workers.

`python pipelines/bench/loader.py --out DIR` builds a store of random genomes and draws training
batches of `mambabio fit` and, where there is one, `mambabio pretrain`, as a training would.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import Table, make_sheet, say_machine  # pyright: ignore[reportMissingImports]  beside this script

from mambabio.sheet import load_samples
from mambabio.store import build_store
from mambapipelines.bio.data import SpeciesData
from mambapipelines.bio.options import DataOptions
from mambapipelines.schedule import Pace
from mambapipelines.training import StepData


def rate(data: StepData, seconds: float) -> float:
    """Positions a second, after the queues were filled once."""
    data.continue_at(0, 1, Pace(1_000_000))
    batches = iter(data.train_dataloader())
    for _ in range(2 * data.workers + 2):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += next(batches)[0].numel()
    return count / (time.perf_counter() - start)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for loader.csv")
    parser.add_argument("--device", default="cpu", help="only said: loading is the CPU's")
    parser.add_argument("--bases", type=int, default=2**23, help="of each of two genomes")
    parser.add_argument("--windows", type=int, nargs="*", default=[2**10, 2**14, 2**20])
    parser.add_argument("--tokens", type=int, default=2**20, help="positions a batch")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=3.0, help="a row")
    arguments = parser.parse_args(argv)
    say_machine(torch.device("cpu"))
    table = Table(arguments.out / "loader.csv", ["verb", "window", "workers", "mtoken_per_s"])
    kinds: list = [("fit", SpeciesData, DataOptions)]
    try:
        from mambapipelines.language.data import LanguageSequences
        from mambapipelines.language.options import LanguageData

        kinds.append(("pretrain", LanguageSequences, LanguageData))
    except ImportError:
        pass
    with tempfile.TemporaryDirectory() as name:
        sheet = load_samples(make_sheet(Path(name), arguments.bases))
        store = build_store(sheet, Path(name) / "cache", n_policy="split", validation=0.0, seed=0)
        for verb, data_class, options_class in kinds:
            for window in arguments.windows:
                for workers in arguments.workers:
                    options = options_class(
                        window=window, first_window=window, tokens=max(window, arguments.tokens),
                        length_warmup=0.0, num_workers=workers,
                    )  # fmt: skip
                    found = rate(data_class(store, options, 0), arguments.seconds)
                    table.add(verb, window, workers, found / 1e6)
    return 0


if __name__ == "__main__":
    sys.exit(main())
