"""A training step through ``mambabio fit``: time and peak memory by checkpointing and length.

`python pipelines/bench/fit_step.py --out DIR` trains d256 n8 on random genomes of its own making, a
few steps a row: 1 x 2^20 with the residual stream in float32 and bfloat16 and each kind of
checkpointing, then longer windows until one does not fit. Beside each: what the formula
(`mambacore.memory`) expects.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from common import Table, make_sheet, peak_gib, reset_peak, say_machine  # pyright: ignore[reportMissingImports]  beside this script

from mambacore import ModelConfig
from mambacore.memory import PIECE, memory_of_training
from mambapipelines.cli import bio
from mambapipelines.metrics_file import read_rows


def fit(sheet: Path, run: Path, options: dict[str, object], steps: int) -> float | None:
    """Milliseconds of a step, or None if it did not fit."""
    every = max(1, (steps - 1) // 2)
    settings = {
        "data.samples": sheet, "data.cache": sheet.parent / "cache", "data.length_warmup": 0,
        "data.validation": 0, "data.baselines": "false",
        "data.first_window": options["data.window"],
        "trainer.max_steps": steps, "trainer.log_every_n_steps": every,
        "trainer.val_check_interval": steps, **options,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    if bio.main(["fit", "--run", str(run), *words]) != 0:
        return None
    # The first rows hold the compilation of kernels.
    row = [row for row in read_rows(run / "metrics.csv") if "train/tokens_per_second" in row][-1]
    return 1e3 * row["train/window"] * row["train/batch"] / row["train/tokens_per_second"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for fit_step.csv")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--n-layer", type=int, default=8)
    parser.add_argument("--window", type=int, default=2**20)
    parser.add_argument("--longest", type=int, default=2**24, help="longest window to try")
    parser.add_argument("--steps", type=int, default=9, help="steps a row (fewer when longer)")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    say_machine(device)
    columns = ["window", "residual", "checkpointing", "step_ms", "mtoken_per_s", "peak_gib"]
    table = Table(arguments.out / "fit_step.csv", [*columns, "formula_gib"])
    rows = [
        (arguments.window, stream, mode)
        for stream in ("float32", "bfloat16")
        for mode in ("none", "selective", "block")
    ]
    window = 4 * arguments.window
    while window <= arguments.longest:
        rows += [(window, "bfloat16", "selective")]
        window *= 2
    with tempfile.TemporaryDirectory() as name:
        sheets: dict[int, Path] = {}
        for number, (window, stream, mode) in enumerate(rows):
            if window not in sheets:
                sheets[window] = make_sheet(Path(name) / f"genomes-{window}", window + window // 4)
            options = {
                "data.window": window, "data.tokens": window,
                "model.d_model": arguments.d_model, "model.n_layer": arguments.n_layer,
                "model.mixer_options": "{mamba: {d_conv: 4, d_state: 16}}",
                "model.residual_dtype": stream, "trainer.checkpointing": mode,
                "trainer.accelerator": "gpu" if device.type == "cuda" else "cpu",
            }  # fmt: skip
            steps = max(5, arguments.steps * arguments.window // window)
            reset_peak(device)
            ms = fit(sheets[window], Path(name) / f"run-{number}", options, steps)
            config = ModelConfig(
                d_model=arguments.d_model, n_layer=arguments.n_layer, residual_dtype=stream
            )
            piece = None if mode == "none" else PIECE
            need = memory_of_training(config, 1, window, checkpointing=mode, piece=piece)
            formula = need.total / 2**30
            if ms is None:
                table.add(window, stream, mode, "does not fit", "", "", formula)
                continue
            rate = window / ms / 1e3
            table.add(window, stream, mode, ms, rate, peak_gib(device), formula)
    return 0


if __name__ == "__main__":
    sys.exit(main())
