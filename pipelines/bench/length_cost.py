"""Time and memory of a training step against length, at a constant number of positions.

`python pipelines/bench/length_cost.py --out DIR` trains a species classifier (d256 n8, bf16
autocast, AdamW) on windows from 2^10 to 2^22; a step holds 2^20 positions, or one window where it
is longer. Writes length_cost.csv and length_cost.png and says how far from linear the cost is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch
from common import Table, peak_gib, reset_peak, say_machine, wait  # pyright: ignore[reportMissingImports]  beside this script
from torch.nn import functional

from mambabio.classifier import SpeciesClassifier
from mambabio.classifier_config import ClassifierConfig
from mambacore import ModelConfig
from mambacore.checkpointing import set_checkpointing
from mambacore.memory import PIECE


def measure(
    model: SpeciesClassifier, batch: int, length: int, repeats: int, device: torch.device
) -> tuple[float, float]:
    """Median milliseconds of a step, peak GiB."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=device.type == "cuda")
    tokens = torch.randint(0, 4, (batch, length), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 2, (batch,), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = functional.cross_entropy(model(tokens).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    reset_peak(device)
    times = []
    for _ in range(repeats):
        start = wait(device)
        step()
        times.append(wait(device) - start)
    return 1e3 * statistics.median(times), peak_gib(device)


def draw(table: Table, path: Path, title: str) -> None:
    """Time and memory against length, both per step of equally many positions or longer ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6))
    lengths = [row["length"] for row in table.rows]
    positions = [row["length"] * row["batch"] for row in table.rows]
    for axes, column, label in (
        (left, "step_ms", "ms a million positions"),
        (right, "peak_gib", "GiB a million positions"),
    ):
        values = [1e6 * row[column] / n for row, n in zip(table.rows, positions, strict=True)]
        axes.loglog(lengths, values, "o-", base=2)
        axes.set_yscale("log", base=10)
        axes.set_xlabel("length")
        axes.set_ylabel(label)
        middle = statistics.median(values)
        if middle > 0:
            axes.set_ylim(middle / 4, middle * 4)
        axes.grid(True, which="both", alpha=0.3)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the files")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--n-layer", type=int, default=8)
    parser.add_argument("--shortest", type=int, default=10, help="as a power of two")
    parser.add_argument("--longest", type=int, default=22, help="as a power of two")
    parser.add_argument("--positions", type=int, default=20, help="a step, as a power of two")
    parser.add_argument("--checkpointing", choices=["none", "selective", "block"], default="none")
    parser.add_argument("--residual", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    say_machine(device)
    config = ModelConfig(
        d_model=arguments.d_model, n_layer=arguments.n_layer, residual_dtype=arguments.residual
    )
    model = SpeciesClassifier(ClassifierConfig(config, labels=("a", "b"))).to(device)
    piece = None if arguments.checkpointing == "none" else PIECE
    set_checkpointing(model, arguments.checkpointing, piece=piece)
    arguments.out.mkdir(parents=True, exist_ok=True)
    columns = ["length", "batch", "step_ms", "us_per_kilotoken", "peak_gib"]
    table = Table(arguments.out / "length_cost.csv", columns)
    for power in range(arguments.shortest, arguments.longest + 1):
        batch = max(1, 2 ** (arguments.positions - power))
        ms, peak = measure(model, batch, 2**power, arguments.repeats, device)
        table.add(2**power, batch, ms, 1e6 * ms / (batch * 2**power), peak)
    costs = [row["us_per_kilotoken"] for row in table.rows]
    middle = statistics.median(costs)
    worst = max(abs(cost / middle - 1) for cost in costs)
    print(f"time a position: within {worst:.1%} of the median over all lengths", flush=True)
    title = f"d{arguments.d_model} n{arguments.n_layer}, checkpointing {arguments.checkpointing}"
    draw(table, arguments.out / "length_cost.png", title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
