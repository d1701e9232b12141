"""The S4D mixer on one GPU: forward and backward by FFT and by chunks, beside the floor.

`python kernels/bench/s4d_gpu.py --out DIR` prints a table and writes DIR/s4d_gpu.csv with the
median and the 10th and 90th percentiles. `graph` rows replay the same work as a CUDA graph: the
device's share without the host's. The floor is the larger of two: the float32 flops that
`mambacore.mixers.chunked` counts, at the speed of large float32 matrix products, and its bytes, at
the speed of a copy, both measured in the same run. Outputs and gradients are compared with float64
before anything is timed. `--profile` prints the kernels that take the time.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mambacore.mixers import S4DMixer
from mambacore.recording import aside

SHAPES = ((16, 16_000, 64), (16, 4_000, 128), (1, 2**20, 64))  # batch, length, channels
FLOPS = 1_536  # a position and channel at 32 modes, forward and backward
BYTES = 112
COLUMNS = (
    "what", "batch", "length", "channels", "median_ms", "p10_ms", "p90_ms", "floor_ms",
    "times_floor", "peak_gib", "gpu",
)  # fmt: skip
Convolution = Literal["fft", "chunks"]


def timed(run: Callable[[], object], repeats: int = 15) -> tuple[float, float, float]:
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    tenths = statistics.quantiles(times, n=10)
    return statistics.median(times), tenths[0], tenths[-1]


def speeds() -> tuple[float, float]:
    """Bytes a second of a copy, float32 flops a second of a batch of matrix products."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copied = 2 * source.numel() / (timed(lambda: target.copy_(source))[0] * 1e-3)
    left = torch.randn(64, 4096, 512, device="cuda")
    right = torch.randn(64, 512, 512, device="cuda")
    flops = 2 * left.numel() * 512 / (timed(lambda: left @ right)[0] * 1e-3)
    return copied, flops


def mixer_of(channels: int, path: Convolution) -> S4DMixer:
    torch.manual_seed(0)
    mixer = S4DMixer(channels).cuda()
    mixer.convolution = path
    return mixer


def outcome(mixer: S4DMixer, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y, _ = mixer(x)
    return [y, *torch.autograd.grad(y.square().mean(), [x, *mixer.parameters()])]


def check() -> None:
    x = torch.randn(2, 4_099, 64, device="cuda")
    exact = outcome(mixer_of(64, "fft").double(), x.double())
    for path in ("fft", "chunks"):
        worst = max(
            ((got.double() - known).abs().max() / known.abs().max()).item()
            for got, known in zip(outcome(mixer_of(64, path), x), exact, strict=True)
        )
        print(f"{path}: largest relative error of outputs and gradients {worst:.1e}", flush=True)
        if not worst < 5e-5:
            raise SystemExit(f"{path} differs from float64 by {worst:.1e}")


def work(path: Convolution, shape: tuple[int, int, int]) -> tuple[Callable[[], object], ...]:
    """Forward alone, and forward and backward, under bfloat16 autocast as in training."""
    mixer = mixer_of(shape[2], path)
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_()
    dy = torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    def forward() -> None:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            mixer(x)

    def both() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            y, _ = mixer(x)
        torch.autograd.grad(y, [x, *mixer.parameters()], dy)

    return forward, both


def recorded(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    aside(run, 2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def profile(run: Callable[[], object]) -> None:
    run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    events = sorted(found.key_averages(), key=lambda event: -event.self_device_time_total)
    print(f"kernels launched: {sum(event.count for event in events)}")
    for event in events[:24]:
        print(f"{event.self_device_time_total:9.0f} us {event.count:4} x {event.key[:110]}")


def report(
    what: str, shape: tuple[int, int, int], run: Callable[[], object], floor: float
) -> list[object]:
    torch.cuda.reset_peak_memory_stats()
    median, low, high = timed(run)
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(
        f"{what:20} {shape[0]:3} x {shape[1]:7} x {shape[2]:4}  {median:8.3f} ms"
        f"  floor {floor:6.3f} ms  {median / floor:6.2f} x  peak {peak:6.2f} GiB",
        flush=True,
    )
    times = [f"{value:.3f}" for value in (median, low, high, floor)]
    return [what, *shape, *times, f"{median / floor:.2f}", f"{peak:.2f}"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the CSV")
    parser.add_argument("--profile", action="store_true", help="kernels of the chunked path")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("s4d_gpu: needs a CUDA GPU", file=sys.stderr)
        return 2
    check()
    copied, flops = speeds()
    name = torch.cuda.get_device_name()
    print(f"{name}: copies at {copied / 1e9:.0f} GB/s, float32 at {flops / 1e12:.1f} TFLOP/s")
    rows: list[list[object]] = []
    for shape in SHAPES:
        size = shape[0] * shape[1] * shape[2]
        floor = max(size * FLOPS / flops, size * BYTES / copied) * 1e3
        for path in ("fft", "chunks"):
            forward, both = work(path, shape)
            rows.append(report(f"{path} forward", shape, forward, floor / 3))
            rows.append(report(f"{path} both", shape, both, floor))
            if path == "chunks":
                rows.append(report("chunks both, graph", shape, recorded(both).replay, floor))
                if arguments.profile:
                    profile(both)
            del forward, both
            torch.cuda.empty_cache()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with open(arguments.out / "s4d_gpu.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([*row, name] for row in rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
