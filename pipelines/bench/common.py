"""What the benchmarks of training share: random genomes, tables that grow as rows come, a clock."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch


def make_sheet(folder: Path, bases: int, labels: Sequence[str] = ("a", "b")) -> Path:
    """A sample sheet of one random record of `bases` bases a label, under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["label\tpath\tsplit"]
    for seed, label in enumerate(labels):
        letters = np.frombuffer(b"ACGT", np.uint8)
        sequence = letters[np.random.default_rng(seed).integers(0, 4, bases, dtype=np.uint8)]
        path = folder / f"{label}.fa"
        path.write_bytes(b">" + label.encode() + b"\n" + sequence.tobytes() + b"\n")
        rows.append(f"{label}\t{path.name}\ttrain")
    sheet = folder / "sheet.tsv"
    sheet.write_text("\n".join(rows) + "\n")
    return sheet


class Table:
    """A CSV file, printed row by row as it grows."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="")
        self._writer = csv.writer(self._file)
        self.rows: list[dict[str, Any]] = []
        self._columns = columns
        self._put(columns)

    def add(self, *values: Any) -> None:
        """One row, in the columns' order; floats are shortened."""
        self.rows.append(dict(zip(self._columns, values, strict=True)))
        self._put([f"{v:.4g}" if isinstance(v, float) else v for v in values])

    def _put(self, values: Sequence[Any]) -> None:
        self._writer.writerow(values)
        self._file.flush()
        print(*values, sep=",", flush=True)


def say_machine(device: torch.device) -> None:
    """The first line of every benchmark: on what it runs."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads", flush=True)


def wait(device: torch.device) -> float:
    """Seconds, after the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def reset_peak(device: torch.device) -> None:
    """Measure peak memory from here."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """Most memory allocated since `reset_peak`; NaN on a CPU."""
    if device.type != "cuda":
        return float("nan")
    return torch.cuda.max_memory_allocated(device) / 2**30
