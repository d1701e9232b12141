"""Convolution, norm and decoding step on one GPU: time and traffic against the memory floor.

`python kernels/bench/ops_gpu.py --out DIR` prints a table and writes DIR/ops_gpu.csv with the
median and the 10th and 90th percentiles of each row. The floor is the time to read every input
and write every output once at the speed of a device-to-device copy, measured in the same run.
Each operation is compared with the reference backend before it is timed. `--tune` times the
convolution with other launch settings as well, to choose the defaults by.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mambakernels import causal_conv1d, rms_norm, selective_state_step

SHAPES = (  # batch, length, channels: rows of the whole-model table, one short, one odd
    (1, 2**20, 512),
    (1, 2**20, 256),
    (8, 2048, 2048),
    (64, 2048, 512),
    (1, 2048, 1536),
    (3, 4099, 500),
)
COLUMNS = (
    "operation", "batch", "length", "channels", "median_ms", "p10_ms", "p90_ms", "gb_per_s",
    "floor_ms", "times_floor", "gpu",
)  # fmt: skip


class Job(NamedTuple):
    """What is timed, and the bytes that it has to move."""

    operation: str
    shape: tuple[int, int, int]
    run: Callable[[], object]
    traffic: int


def timed(run: Callable[[], object]) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile in ms, with a flushed cache between runs."""
    from triton.testing import do_bench

    median, low, high = do_bench(run, warmup=50, rep=200, quantiles=[0.5, 0.1, 0.9])  # type: ignore[misc]
    return median, low, high


def copy_speed() -> float:
    """Bytes a second of a large copy, read plus written."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / (timed(lambda: target.copy_(source))[0] * 1e-3)


def nbytes(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def relative(got: Tensor, expected: Tensor) -> float:
    scale = expected.double().abs().max().item()
    return (got.double() - expected.double()).abs().max().item() / max(scale, 1e-30)


def check() -> None:
    """Small odd sizes in bfloat16 against the reference on the same inputs; raises if off."""
    x = torch.randn(2, 3, 997, 200, device="cuda", dtype=torch.bfloat16)[0].requires_grad_()
    weight = torch.randn(200, 4, device="cuda").requires_grad_()
    scale = torch.rand(200, device="cuda").requires_grad_()
    stream = torch.randn(3, 997, 200, device="cuda").requires_grad_()
    found: dict[str, list[Tensor]] = {}
    for backend in ("triton", "reference"):
        out = causal_conv1d(x, weight, activation="silu", backend=backend)
        torch.manual_seed(0)
        dout = torch.randn_like(out)
        y, total = rms_norm(x, scale, residual=stream, return_residual=True, backend=backend)
        found[backend] = [
            out, *torch.autograd.grad(out, (x, weight), dout),
            y, total, *torch.autograd.grad((y, total), (x, scale, stream), (dout, stream.detach())),
        ]  # fmt: skip
    for number, (got, expected) in enumerate(zip(*found.values(), strict=True)):
        error = relative(got, expected)
        if not error <= 2**-7:
            raise SystemExit(f"result {number} differs from the reference by {error:.2e}")


def convolution(shape: tuple[int, int, int]) -> list[Job]:
    batch, length, channels = shape
    xz = torch.randn(batch, length, 2 * channels, device="cuda", dtype=torch.bfloat16)
    x = xz.chunk(2, dim=-1)[0].requires_grad_()
    weight = torch.randn(channels, 4, device="cuda").requires_grad_()
    bias = torch.randn(channels, device="cuda").requires_grad_()
    out = causal_conv1d(x, weight, bias, activation="silu")
    dout = torch.randn_like(out)

    def forward() -> None:
        with torch.no_grad():
            causal_conv1d(x, weight, bias, activation="silu")

    def backward() -> None:
        torch.autograd.grad(out, (x, weight, bias), dout, retain_graph=True)

    once = nbytes(out)
    return [
        Job("conv forward", shape, forward, 2 * once),
        Job("conv backward", shape, backward, 3 * once),
    ]


def norm(shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> list[Job]:
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_()
    residual = torch.randn(shape, device="cuda", dtype=dtype).requires_grad_()
    weight = torch.ones(shape[-1], device="cuda").requires_grad_()
    y, stream = rms_norm(x, weight, residual=residual, return_residual=True)
    dy, dstream = torch.randn_like(y), torch.randn_like(stream)

    def forward() -> None:
        with torch.no_grad():
            rms_norm(x, weight, residual=residual, return_residual=True)

    def backward() -> None:
        torch.autograd.grad((y, stream), (x, weight, residual), (dy, dstream), retain_graph=True)

    small, wide = nbytes(x), nbytes(residual)
    kind = "float32" if dtype == torch.float32 else "bfloat16"
    returned = 2 * small + 3 * wide if dtype == torch.float32 else small + 3 * wide
    return [
        Job(f"norm forward, {kind} residual", shape, forward, 2 * small + 2 * wide),
        Job(f"norm backward, {kind} residual", shape, backward, returned),
    ]


def step(batch: int, channels: int, states: int = 16) -> list[Job]:
    state = torch.randn(batch, channels, states, device="cuda")
    u, delta, z = (
        torch.randn(batch, channels, device="cuda", dtype=torch.bfloat16) for _ in range(3)
    )
    B, C = (torch.randn(batch, states, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    A = -torch.rand(channels, states, device="cuda")
    D, bias = torch.ones(channels, device="cuda"), torch.zeros(channels, device="cuda")

    def run() -> None:
        selective_state_step(
            state, u, delta, A, B, C, D, z, bias, delta_softplus=True, inplace=True
        )

    return [Job("step in place", (batch, 1, channels), run, 2 * nbytes(state) + 4 * nbytes(u))]


def report(jobs: list[Job], speed: float, rows: list[dict]) -> None:
    for job in jobs:
        median, low, high = timed(job.run)
        floor = job.traffic / speed * 1e3
        row = (
            job.operation, *job.shape, round(median, 4), round(low, 4), round(high, 4),
            round(job.traffic / median / 1e6, 1), round(floor, 4), round(median / floor, 2),
            torch.cuda.get_device_name(),
        )  # fmt: skip
        rows.append(dict(zip(COLUMNS, row, strict=True)))
        batch, length, channels = job.shape
        print(
            f"{job.operation:34} {batch:5} x {length:8} x {channels:5}  {median:8.3f} ms"
            f"  {row[7]:8.1f} GB/s  {row[9]:6.2f} x floor",
            flush=True,
        )


def tune(speed: float, rows: list[dict]) -> None:
    """The convolution under other launch settings."""
    from mambakernels.conv import triton as conv

    default = conv.FORWARD, conv.BACKWARD
    candidates = [
        (block, warps, ahead, chunk)
        for block, warps in ((256, 1), (256, 2), (512, 2), (512, 4), (128, 1))
        for ahead in (4, 8)
        for chunk in (128, 512)
    ]
    for shape in (SHAPES[0], SHAPES[2]):
        forward, backward = convolution(shape)
        for block, warps, ahead, chunk in candidates:
            setting = conv.Tuning(block=block, warps=warps, ahead=ahead, chunk=chunk)
            conv.FORWARD = conv.BACKWARD = setting
            name = f" b{block} w{warps} a{ahead} c{chunk}"
            jobs = [job._replace(operation=job.operation + name) for job in (forward, backward)]
            report(jobs, speed, rows)
    conv.FORWARD, conv.BACKWARD = default


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the CSV")
    parser.add_argument("--tune", action="store_true", help="other launch settings as well")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA GPU is visible to torch: this benchmark needs one")
    check()
    speed = copy_speed()
    print(f"{torch.cuda.get_device_name()}: copies at {speed / 1e9:.0f} GB/s")
    rows: list[dict] = []
    for shape in SHAPES:
        report(convolution(shape), speed, rows)
        report(norm(shape), speed, rows)
        torch.cuda.empty_cache()
    report(norm(SHAPES[0], torch.bfloat16), speed, rows)
    for batch in (1, 64, 1024):
        report(step(batch, 512), speed, rows)
    if options.tune:
        tune(speed, rows)
    options.out.mkdir(parents=True, exist_ok=True)
    with open(options.out / "ops_gpu.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
