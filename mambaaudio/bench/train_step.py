"""A training step of the 6 M-parameter U-net on one GPU: milliseconds and peak memory.

    python mambaaudio/bench/train_step.py --out DIR [--models s4d/mamba mamba/mamba] \\
        [--backbone '{"pools": [4, 4, 4], "expand": 1.5, "mixers": ["mamba"]}']

Forward, loss, backward, clipping and AdamW under bfloat16 autocast on random codes, plainly and
with forward and backward pass replayed as CUDA graphs (`--trainer.cuda_graphs`); each model is
first checked: a small copy's gradients on the GPU against the CPU's. SaShiMi (state-spaces/s4 v4,
its U-net) on one NVIDIA H200: 349 ms and 30.5 GiB at 16 x 16,000, out of memory at 1 x 2^20.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compare import MODELS, UNETS
from torch.nn import functional
from wavenet import WaveNet

from mambaaudio.model import WaveformModel
from mambaaudio.model_config import WaveformConfig
from mambacore.checkpointing import MODES, set_checkpointing
from mambacore.multiscale import MultiScaleConfig
from mambacore.optim import parameter_groups
from mambapipelines.replay import ReplayedLoss

SHAPES = ((16, 16_000), (1, 1 << 20))
STEPS = ("plain", "replayed")
PEER = {(16, 16_000): (349.0, 30.5)}


def model_of(name: str, device: str, changes: dict[str, Any]) -> torch.nn.Module:
    torch.manual_seed(0)
    backbone = {"d_model": 64, "pools": (4, 4), **UNETS.get(name, {}), **changes}
    config = WaveformConfig(16_000, backbone=MultiScaleConfig(**backbone))
    model = WaveNet(config) if name == "wavenet" else WaveformModel(config)
    return model.to(device)


def loss_of(model: Any, codes: torch.Tensor) -> torch.Tensor:
    logits, _ = model(model.shift(codes))
    return functional.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())


def check(name: str, changes: dict[str, Any]) -> float:
    """Largest relative difference of a gradient between GPU and CPU, both float32."""
    small = {**changes, "n_layer": 1}
    codes = torch.randint(256, (2, 333))
    gradients = []
    for device in ("cpu", "cuda"):
        model = model_of(name, device, small)
        loss_of(model, codes.to(device)).backward()
        gradients.append(
            {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        )
    worst = 0.0
    for key, expected in gradients[0].items():
        scale = expected.abs().max().item() or 1.0
        worst = max(worst, (gradients[1][key] - expected).abs().max().item() / scale)
    if not worst < 1e-2:
        raise SystemExit(f"{name}: gradients differ by {worst:.1e} between GPU and CPU")
    return worst


class Loss(torch.nn.Module):
    """As `loss_of`, for a `ReplayedLoss`."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, codes: torch.Tensor) -> tuple[torch.Tensor]:
        return (loss_of(self.model, codes),)


def measure(
    name: str,
    batch: int,
    length: int,
    changes: dict[str, Any],
    repeats: int,
    replay: bool,
    checkpointing: str,
) -> tuple[list[float], float, int]:
    """Times of a step in ms, peak GiB, parameters."""
    model = model_of(name, "cuda", changes)
    set_checkpointing(model, checkpointing)
    optimiser = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-3, fused=True)
    codes = torch.randint(256, (batch, length), device="cuda")
    loss_now = ReplayedLoss(partial(Loss, model))
    loss_now.enabled = replay

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            (loss,) = loss_now(codes)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    if not replay:  # the memory of a replay is taken when it is recorded
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    parameters = sum(p.numel() for p in model.parameters())
    return times, torch.cuda.max_memory_allocated() / 2**30, parameters


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for train_step.csv")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["s4d/mamba", "mamba/mamba"])
    parser.add_argument("--backbone", type=json.loads, default={}, help="JSON of other settings")
    parser.add_argument("--residual", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--checkpointing", choices=MODES, default="none")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("train_step: needs a CUDA GPU", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    head = "model,parameters,residual,checkpointing,batch,length,step,median_ms,q10_ms,q90_ms,"
    head += "peak_gib,peer_ms,peer_gib"
    print(head, flush=True)
    changes = {"residual_dtype": arguments.residual, **arguments.backbone}
    with open(arguments.out / "train_step.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head.split(","))
        for name in arguments.models:
            check(name, changes)
            for (batch, length), replay in itertools.product(SHAPES, (False, True)):
                row: list[Any] = [arguments.residual, arguments.checkpointing, batch, length]
                row.append(STEPS[replay])
                try:
                    times, peak, size = measure(
                        name, batch, length, changes, arguments.repeats, replay,
                        arguments.checkpointing,
                    )  # fmt: skip
                    tenths = statistics.quantiles(times, n=10)
                    row = [size, *row, statistics.median(times), tenths[0], tenths[-1], peak]
                except torch.OutOfMemoryError:
                    row = ["", *row, "out of memory", "", "", ""]
                torch.cuda.empty_cache()
                row = [name, *row, *PEER.get((batch, length), ("", ""))]
                row = [f"{x:.2f}" if isinstance(x, float) else x for x in row]
                writer.writerow(row)
                file.flush()
                print(",".join(map(str, row)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
