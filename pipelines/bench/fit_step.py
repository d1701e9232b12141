"""A training step through ``mambabio fit``: time and peak memory by checkpointing and length.

`python pipelines/bench/fit_step.py --out DIR` trains d256 n8 on random genomes of its own making, a
few steps a row: 1 x 2^20 with the residual stream in float32 and bfloat16 and each kind of
checkpointing, then windows twice as long each time until one does not fit (which is then tried with
blocks checkpointed, the least memory there is). Beside each: what the formula (`mambacore.memory`)
expects. Allocated is what tensors took at most, reserved what the allocator held for them, which is
what has to fit. After `--limit` seconds no row is begun.

`--longest 2**24 --first 2**22 --rows search` goes straight to the search.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from common import Table, make_sheet, peak_gib, reset_peak, say_machine  # pyright: ignore[reportMissingImports]  beside this script

from mambacore import ModelConfig
from mambacore.memory import PIECE, memory_of_training
from mambapipelines.cli import bio
from mambapipelines.metrics_file import read_rows

COLUMNS = (
    "window", "residual", "checkpointing", "step_ms", "mtoken_per_s", "peak_gib", "reserved_gib",
    "formula_gib", "row_seconds",
)  # fmt: skip
MODES = ("none", "selective", "block")


class OutOfMemory(Exception):
    """The step did not fit."""


class Heard(io.StringIO):
    """Standard error, shown and remembered."""

    def write(self, text: str) -> int:
        """Both."""
        if sys.__stderr__ is not None:
            sys.__stderr__.write(text)
        return super().write(text)


def fit(sheet: Path, run: Path, options: dict[str, object], timed: int) -> float:
    """Milliseconds of a step: the mean over `timed` steps, after as many that are not timed.

    Raises:
        OutOfMemory: it did not fit.
        RuntimeError: the training failed for another reason, which stands on standard error.
    """
    # Not the last step: a checkpoint is written before it.
    steps = 2 * timed + 1
    settings = {
        "data.samples": sheet, "data.cache": sheet.parent / "cache", "data.length_warmup": 0,
        "data.validation": 0, "data.baselines": "false",
        "data.first_window": options["data.window"],
        "trainer.max_steps": steps, "trainer.log_every_n_steps": timed,
        "trainer.val_check_interval": steps, **options,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    with contextlib.redirect_stderr(Heard()) as heard:
        code = bio.main(["fit", "--run", str(run), *words])
    if code != 0:
        if "out of GPU memory" in heard.getvalue() or "out of memory" in heard.getvalue():
            raise OutOfMemory
        raise RuntimeError(f"mambabio fit ended with exit code {code}")
    rows = [row for row in read_rows(run / "metrics.csv") if row.get("step") == 2 * timed]
    row = next(row for row in rows if "train/tokens_per_second" in row)
    return 1e3 * row["train/window"] * row["train/batch"] / row["train/tokens_per_second"]


class Bench:
    """Rows of one model on one sheet."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, device: torch.device) -> None:
        self._arguments = arguments
        self._folder = folder
        self._device = device
        self._begun = time.monotonic()
        longest = max(arguments.window, arguments.longest)
        self._sheet = make_sheet(folder / "genomes", longest + longest // 4)
        self.table = Table(arguments.out / "fit_step.csv", COLUMNS)

    def row(self, window: int, stream: str, mode: str) -> bool:
        """Measure and print a row; False where it did not fit or the time is up."""
        arguments, begun = self._arguments, time.monotonic()
        if begun - self._begun > arguments.limit:
            print(f"{window} {stream} {mode}: left out, the time is up", flush=True)
            return False
        options = {
            "data.window": window, "data.tokens": window,
            "model.d_model": arguments.d_model, "model.n_layer": arguments.n_layer,
            "model.mixer_options": "{mamba: {d_conv: 4, d_state: 16}}",
            "model.residual_dtype": stream, "trainer.checkpointing": mode,
            "trainer.accelerator": "gpu" if self._device.type == "cuda" else "cpu",
        }  # fmt: skip
        timed = max(1, arguments.steps * arguments.window // window)
        gc.collect()  # what an earlier row left in cycles: tracebacks hold tensors
        reset_peak(self._device)
        try:
            ms = fit(self._sheet, self._folder / f"run-{len(self.table.rows)}", options, timed)
            figures = (ms, window / ms / 1e3)
        except OutOfMemory:
            figures = ("does not fit", "")
        self.table.add(
            window, stream, mode, *figures, peak_gib(self._device), reserved_gib(self._device),
            self._formula(window, stream, mode), time.monotonic() - begun,
        )  # fmt: skip
        return figures[1] != ""

    def _formula(self, window: int, stream: str, mode: str) -> float:
        config = ModelConfig(
            d_model=self._arguments.d_model, n_layer=self._arguments.n_layer, residual_dtype=stream
        )
        piece = None if mode == "none" or window <= PIECE else PIECE
        need = memory_of_training(
            config, 1, window, checkpointing=mode, piece=piece, autocast=self._device.type == "cuda"
        )
        return need.total / 2**30

    def search(self, window: int) -> None:
        """Twice as long each time, until a window does not fit."""
        while window <= self._arguments.longest:
            if not self.row(window, "bfloat16", "selective"):
                self.row(window, "bfloat16", "block")
                return
            window *= 2


def reserved_gib(device: torch.device) -> float:
    """Most memory that the allocator held since `reset_peak`; NaN on a CPU."""
    if device.type != "cuda":
        return float("nan")
    return torch.cuda.max_memory_reserved(device) / 2**30


def positions(text: str) -> int:
    """A number, or a power like 2**20."""
    base, _, power = text.partition("**")
    return int(base) ** int(power or 1)


def kinds(window: int) -> Iterator[tuple[int, str, str]]:
    """One window with each stream and each kind of checkpointing."""
    for stream in ("float32", "bfloat16"):
        for mode in MODES:
            yield window, stream, mode


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for fit_step.csv")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--n-layer", type=int, default=8)
    parser.add_argument("--window", type=positions, default=2**20)
    parser.add_argument("--rows", choices=["all", "kinds", "search"], default="all")
    parser.add_argument(
        "--first", type=positions, help="where the search begins (default: 4 windows)"
    )
    parser.add_argument(
        "--longest", type=positions, default=2**24, help="longest window to try, e.g. 2**24"
    )
    parser.add_argument(
        "--steps", type=int, default=4, help="timed steps a row, fewer where windows are longer"
    )
    parser.add_argument("--limit", type=float, default=140, help="seconds, then no row is begun")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    say_machine(device)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(arguments, Path(name), device)
        if arguments.rows != "search":
            for row in kinds(arguments.window):
                bench.row(*row)
        if arguments.rows != "kinds":
            bench.search(arguments.first or 4 * arguments.window)
    return 0


if __name__ == "__main__":
    sys.exit(main())
