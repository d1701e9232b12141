"""Whole-model training steps on one GPU: time, throughput and peak memory against mamba_ssm.

`python kernels/bench/model_gpu.py --out DIR` trains a language model of the sizes below with
random DNA-sized tokens (16 symbols): forward, loss, backward, clip-free AdamW step, under bf16
autocast. Before a row is timed, a small copy of the model is compared with the float64 reference
backend. The peer's figures are constants measured on one NVIDIA H200 with torch 2.11 and Triton
3.6 (mamba_ssm 2.3.2.post1, its CUDA scan and its fused convolution): the ratio holds on that GPU.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from mambacore import LanguageModel, ModelConfig

VOCABULARY = 16


@dataclass(frozen=True)
class Row:
    """One row of the table; `train=False` times the forward alone."""

    d_model: int
    n_layer: int
    batch: int
    length: int
    peer_ms: float
    peer_gib: float | None
    train: bool = True

    @property
    def name(self) -> str:
        kind = "train" if self.train else "forward"
        return f"{kind} d{self.d_model} n{self.n_layer} {self.batch} x {self.length}"


ROWS = (
    Row(256, 8, 1, 2**20, 752.3, 47.4),
    Row(128, 8, 1, 2**20, 396.7, 24.3),
    Row(256, 8, 1, 2**20, 127.5, None, train=False),
    Row(256, 8, 64, 2**14, 584.9, 47.4),
    Row(256, 8, 1024, 2**10, 767.9, 47.6),
    Row(128, 6, 16, 2**17, 495.1, 38.9),
)


def model_of(row: Row, residual: str, dtype: torch.dtype | None = None) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=VOCABULARY, d_model=row.d_model, n_layer=row.n_layer, residual_dtype=residual
    )
    model = LanguageModel(config).cuda()
    return model if dtype is None else model.to(dtype)


def loss_of(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    logits, _ = model(tokens[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def check(row: Row, residual: str) -> float:
    """Largest gradient difference between the GPU path in fp32 and the CPU path, relative."""
    small = Row(row.d_model, 2, 2, 300, 0, None)
    model = model_of(small, residual)
    tokens = torch.randint(0, VOCABULARY, (2, 301), device="cuda")
    loss_of(model, tokens).backward()
    on_gpu = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    model = model.cpu()
    model.zero_grad(set_to_none=True)
    loss_of(model, tokens.cpu()).backward()
    worst = 0.0
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        scale = parameter.grad.abs().max().item() or 1.0
        worst = max(worst, (on_gpu[name] - parameter.grad).abs().max().item() / scale)
    limit = 1e-3 if residual == "float32" else 5e-2
    if not worst < limit:
        raise SystemExit(f"{row.name}: gradients differ by {worst:.2e} between GPU and CPU")
    return worst


def measure(row: Row, residual: str, repeats: int, compiled: bool) -> tuple[float, float, float]:
    """Median step in ms, peak memory in GiB, seconds of the first step (compilation)."""
    model = model_of(row, residual)
    step_model: torch.nn.Module = torch.compile(model) if compiled else model  # pyright: ignore
    groups = model.parameters()
    optimiser = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    tokens = torch.randint(0, VOCABULARY, (row.batch, row.length + 1), device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            if not row.train:
                with torch.no_grad():
                    step_model(tokens[:, :-1])
                return
            loss = loss_of(step_model, tokens)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    peak = torch.cuda.max_memory_allocated() / 2**30
    return statistics.median(times), peak, first


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for model_gpu.csv")
    parser.add_argument("--repeats", type=int, default=7, help="timed steps a row")
    parser.add_argument("--rows", type=int, nargs="*", help="row numbers (default: all)")
    parser.add_argument("--residual", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile(model)")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("model_gpu: needs a CUDA GPU", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    head = "row,residual,compiled,step_ms,mtoken_per_s,peak_gib,peer_ms,peer_gib,ratio,first_step_s"
    print(head, flush=True)
    with open(arguments.out / "model_gpu.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head.split(","))
        for number, row in enumerate(ROWS):
            if arguments.rows and number not in arguments.rows:
                continue
            if number < 2:
                check(row, arguments.residual)
            for compiled in (False, True) if arguments.compile else (False,):
                ms, peak, first = measure(row, arguments.residual, arguments.repeats, compiled)
                rate = row.batch * row.length / ms / 1e3
                values = [row.name, arguments.residual, compiled, f"{ms:.1f}", f"{rate:.2f}"]
                values += [f"{peak:.1f}", row.peer_ms, row.peer_gib, f"{row.peer_ms / ms:.2f}"]
                writer.writerow([*values, f"{first:.1f}"])
                file.flush()
                print(*values, f"{first:.1f}", sep=",", flush=True)
                torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
