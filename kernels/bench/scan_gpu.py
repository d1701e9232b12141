"""The selective scan on one GPU: time and memory against mamba_ssm, for each row of a table.

`PYTHONPATH=kernels python kernels/bench/scan_gpu.py --out DIR` first compares the results with the
float64 definition, then times the public function and `torch.autograd.grad` through it with
`triton.testing.do_bench` (bf16, 16 states, softplus, delta bias, D and gate), measures the peak
memory beyond the inputs, and writes `scan_gpu.csv`, `scan_gpu_lengths.csv` and `scan_gpu.png`.

The peer is timed in the same process where `mamba_ssm` can be imported; elsewhere its figures are
constants measured on one NVIDIA H200 (torch 2.11, Triton 3.6, mamba_ssm 2.3.2.post1), and so are
those of attention: ratios to constants hold on that GPU only. The floor is one exponential for each
(batch, step, channel, state) at 16 a clock and multiprocessor.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from triton.testing import do_bench

from mambakernels import selective_scan

STATES = 16
# (batch, length, channels): mamba_ssm's forward and backward ms
ROWS: dict[tuple[int, int, int], tuple[float, float]] = {
    (1, 1_048_576, 256): (10.17, 26.15),
    (1, 1_048_576, 512): (11.17, 60.94),
    (1, 131_072, 512): (1.468, 7.416),
    (8, 2_048, 2_048): (0.590, 2.306),
    (8, 2_048, 4_096): (1.163, 4.523),
    (64, 2_048, 512): (1.162, 4.555),
    (1, 2_048, 1_536): (0.068, 0.286),
}
GRAPHED = (1, 2_048, 1_536)  # also timed as a CUDA graph, without Python between the kernels
ATTENTION = {2_048: 0.040, 8_192: 0.338, 32_768: 4.74, 131_072: 74.5}  # cuDNN, d_model 1,024
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def make(batch: int, length: int, channels: int) -> tuple[list[Tensor], Tensor]:
    """Inputs that want gradients, z a view of a projection, and the derivative by the output."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, generator=generator)

    low = normal(batch, length, 16 + 2 * STATES)
    inputs = [
        normal(batch, length, channels),
        normal(batch, length, channels).mul_(0.5),
        -torch.arange(1.0, STATES + 1, device="cuda").repeat(channels, 1),
        low[..., 16 : 16 + STATES],
        low[..., 16 + STATES :],
        torch.ones(channels, device="cuda"),
        normal(batch, length, 2 * channels)[..., channels:],
        torch.full((channels,), -3.0, device="cuda"),
    ]
    return [t.requires_grad_() for t in inputs], normal(batch, length, channels)


def ours(inputs: list[Tensor]) -> Tensor:
    return selective_scan(*inputs, delta_softplus=True)


def load_peer() -> Callable[[list[Tensor]], Tensor] | None:
    """mamba_ssm's scan on tensors laid out as it wants them: (batch, channels, length)."""
    try:
        module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except ImportError:
        return None
    return lambda inputs: module.selective_scan_fn(*inputs, delta_softplus=True)


def for_peer(inputs: list[Tensor]) -> list[Tensor]:
    turned = [
        t.detach().transpose(1, 2).contiguous() if t.dim() == 3 else t.detach() for t in inputs
    ]
    return [t.requires_grad_() for t in turned]


def check(batch: int, length: int, channels: int) -> float:
    """Largest error relative to the largest value, over the output and all gradients."""
    inputs, dout = make(batch, length, channels)
    results = []
    for double in (False, True):
        leaves = [t.detach().double() if double else t.detach() for t in inputs]
        leaves = [t.requires_grad_() for t in leaves]
        out = selective_scan(
            *leaves, delta_softplus=True, backend="reference" if double else "triton"
        )
        results.append([out, *torch.autograd.grad(out, leaves, dout.to(out.dtype))])
    worst = 0.0
    for got, exact in zip(*results, strict=True):
        if not torch.isfinite(got).all():
            return float("inf")
        worst = max(worst, ((got.double() - exact).abs().max() / exact.abs().max()).item())
    return worst


def quantiles(run: Callable[[], object]) -> list[float]:
    """Median, lower and upper quartile, in ms; the cache is emptied before every run."""
    return list(do_bench(run, warmup=20, rep=150, quantiles=[0.5, 0.25, 0.75]) or ())


def time_backward(out: Tensor, inputs: list[Tensor], dout: Tensor) -> list[float]:
    return quantiles(lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True))


def time_both(function: Callable[[list[Tensor]], Tensor], inputs: list[Tensor], dout: Tensor):
    """Quantiles of forward and backward ms, and the peak GiB of both beyond what was there."""
    forward = quantiles(lambda: function(inputs))
    backward = time_backward(function(inputs), inputs, dout)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(function(inputs), inputs, dout)
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30
    return forward, backward, peak


def time_graphs(inputs: list[Tensor], dout: Tensor) -> tuple[list[float], list[float]]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = ours(inputs)
        torch.autograd.grad(out, inputs, dout, retain_graph=True)
    torch.cuda.synchronize()
    forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(forward, stream=stream):
        ours(inputs)
    with torch.cuda.graph(backward, stream=stream):
        torch.autograd.grad(out, inputs, dout, retain_graph=True)
    return quantiles(forward.replay), quantiles(backward.replay)


def floor_ms(batch: int, length: int, channels: int) -> float:
    device = torch.cuda.get_device_properties(0)
    clock = getattr(device, "clock_rate", 1_980_000) * 1e3
    return batch * length * channels * STATES / (device.multi_processor_count * 16 * clock) * 1e3


def measure_row(shape: tuple[int, int, int], peer) -> list[dict[str, object]]:
    inputs, dout = make(*shape)
    measured = [("do_bench", *time_both(ours, inputs, dout))]
    if shape == GRAPHED:
        measured.append(("cuda graph", *time_graphs(inputs, dout), measured[0][3]))
    peer_forward, peer_backward = ROWS[shape]
    if peer is not None:
        turned, dout_turned = for_peer(inputs), dout.transpose(1, 2).contiguous()
        f, b, _ = time_both(peer, turned, dout_turned)
        peer_forward, peer_backward = f[0], b[0]
    floor = floor_ms(*shape)
    return [
        {
            "batch": shape[0],
            "length": shape[1],
            "channels": shape[2],
            "how": how,
            "forward_ms": round(forward[0], 4),
            "forward_q25_ms": round(forward[1], 4),
            "forward_q75_ms": round(forward[2], 4),
            "backward_ms": round(backward[0], 4),
            "backward_q25_ms": round(backward[1], 4),
            "backward_q75_ms": round(backward[2], 4),
            "peer_forward_ms": round(peer_forward, 4),
            "peer_backward_ms": round(peer_backward, 4),
            "forward_ratio": round(peer_forward / forward[0], 2),
            "ratio": round((peer_forward + peer_backward) / (forward[0] + backward[0]), 2),
            "floor_ms": round(floor, 4),
            "floor_over_forward": round(floor / forward[0], 3),
            "floor_over_both": round(floor / (forward[0] + backward[0]), 3),
            "peak_gib": round(peak, 3),
            "peer": "constant" if peer is None else "live",
        }
        for how, forward, backward, peak in measured
    ]


def measure_lengths(channels: int, most: int) -> list[dict[str, object]]:
    rows = []
    for power in range(10, most.bit_length(), 2):
        inputs, dout = make(1, 2**power, channels)
        forward, backward, _ = time_both(ours, inputs, dout)
        rows.append(
            {
                "length": 2**power,
                "channels": channels,
                "forward_ms": round(forward[0], 4),
                "both_ms": round(forward[0] + backward[0], 4),
                "floor_ms": round(floor_ms(1, 2**power, channels), 5),
            }
        )
    return rows


def draw(rows: list[dict], lengths: list[dict], channels: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5), constrained_layout=True)
    x = [row["length"] for row in lengths]
    axes.plot(x, [row["forward_ms"] for row in lengths], "o-", label="ours, forward")
    axes.plot(x, [row["both_ms"] for row in lengths], "s-", label="ours, forward + backward")
    axes.plot(x, [row["floor_ms"] for row in lengths], "k:", label="one exponential each (floor)")
    alike = [r for r in rows if (r["batch"], r["channels"]) == (1, channels)]
    for name, total in (("forward", False), ("forward + backward", True)):
        axes.plot(
            [r["length"] for r in alike],
            [r["peer_forward_ms"] + total * r["peer_backward_ms"] for r in alike],
            "^--" if total else "v--",
            label=f"mamba_ssm, {name}",
        )
    axes.plot(
        list(ATTENTION), list(ATTENTION.values()), "x-", color="gray",
        label="causal attention (cuDNN), d_model 1,024, forward",
    )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlabel="length", ylabel="ms",
        title=f"Selective scan, batch 1, {channels} channels, {STATES} states, bf16",
    )  # fmt: skip
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


FIRST_CALL = """
import sys, time, torch
sys.path.insert(0, {folder!r})
import scan_gpu
inputs, dout = scan_gpu.make(1, 4096, 512)
torch.cuda.synchronize()
began = time.perf_counter()
torch.autograd.grad(scan_gpu.ours(inputs), inputs, dout)
torch.cuda.synchronize()
print(time.perf_counter() - began)
"""


def first_call_seconds(cache: str) -> float:
    """Forward and backward in a new process: compiled, or read from this cache folder."""
    code = FIRST_CALL.format(folder=str(Path(__file__).resolve().parent))
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TRITON_CACHE_DIR": cache},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout)


def write_csv(rows: list[dict], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for CSV and plot")
    parser.add_argument("--longest", type=int, default=2**20, help="of the plot's lengths")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "this benchmark needs a CUDA GPU\n")
    options.out.mkdir(parents=True, exist_ok=True)
    print(
        f"{torch.cuda.get_device_name()}; torch {torch.__version__}; bf16, {STATES} states",
        file=sys.stderr,
    )
    for shape in ((2, 300, 96), (1, 1000, 64)):
        began = time.perf_counter()
        error = check(*shape)
        seconds = time.perf_counter() - began
        print(f"check {shape}: largest error {error:.1e} ({seconds:.1f} s)", file=sys.stderr)
        if not error < 2e-2:  # of bf16 results: 4 eps are 3e-2
            sys.exit(f"the scan is wrong at {shape}: error {error:.1e}")
    peer = load_peer()
    rows: list[dict] = []
    print(
        "batch length channels      how  forward   peer ratio | backward    peer | both  | "
        "floor/forward peak GiB"
    )
    for shape in ROWS:
        for row in measure_row(shape, peer):
            rows.append(row)
            print(
                f"{shape[0]:5} {shape[1]:7} {shape[2]:6} {row['how']:>10} "
                f"{row['forward_ms']:8.3f} {row['peer_forward_ms']:7.3f} "
                f"{row['forward_ratio']:4.2f}x | {row['backward_ms']:7.3f} "
                f"{row['peer_backward_ms']:7.3f} | {row['ratio']:4.2f}x | "
                f"{row['floor_over_forward']:5.2f} {row['peak_gib']:8.2f}",
                flush=True,
            )
        torch.cuda.empty_cache()
    write_csv(rows, options.out / "scan_gpu.csv")
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = first_call_seconds(cache), first_call_seconds(cache)
    print(f"first forward and backward: {cold:.1f} s compiling, {warm:.1f} s from the disk cache")
    lengths = measure_lengths(512, options.longest)
    write_csv(lengths, options.out / "scan_gpu_lengths.csv")
    draw(rows, lengths, 512, options.out / "scan_gpu.png")


if __name__ == "__main__":
    main()
