"""Speed and memory of the scan on the CPU: ours, mambapy's pscan, a chunked scan in plain PyTorch.

    python kernels/bench/scan_cpu.py [--lengths 2048,16384] [--threads 2] [--first-call] [--csv F]

All three start from u, delta, A, B, C, D as a mixer has them (float32, batch 1, 256 channels, 16
states) and give y; mambapy's is what its MambaBlock.selective_scan computes. Correctness against
the float64 reference comes first. Then the three take turns in one process, so that whatever else
the machine does falls on all of them. One CSV row each: median, quartiles and minimum in
milliseconds, the processor time of all threads (which other programs on the machine change less),
G elements/s (batch x length x channels x states) at the median, memory beyond inputs, outputs and
gradients at its peak, the machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mambakernels import selective_scan
from mambakernels.scan import reference

CHANNELS, STATES = 256, 16
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def make_inputs(length: int, channels: int = CHANNELS, states: int = STATES) -> Inputs:
    """u, delta, A, B, C, D as in an initialised Mamba: A = -1..-n, delta log-uniform."""
    generator = torch.Generator().manual_seed(length)
    u = torch.randn(1, length, channels, generator=generator)
    delta = torch.rand(1, length, channels, generator=generator).mul(4.6).sub(6.9).exp()
    A = -torch.arange(1.0, states + 1).repeat(channels, 1)
    B = torch.randn(1, length, states, generator=generator)
    C = torch.randn(1, length, states, generator=generator)
    return u, delta, A, B, C, torch.randn(channels, generator=generator)


def ours(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    return selective_scan(u, delta, A, B, C, D, backend="cpu")


def mambapy_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """MambaBlock.selective_scan of mambapy, line by line."""
    from mambapy.pscan import pscan

    delta_A = torch.exp(delta.unsqueeze(-1) * A)
    delta_B = delta.unsqueeze(-1) * B.unsqueeze(2)
    states = pscan(delta_A, delta_B * u.unsqueeze(-1))
    return (states @ C.unsqueeze(-1)).squeeze(3) + D * u


@torch.no_grad()
def chunked(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, steps: int = 128
) -> Tensor:
    """The best we found in plain PyTorch, forward only.

    All chunks of `steps` steps walk side by side, so that a step is a few large operations in
    place, on memory that stays in the cache; first for the chunks' final states from zero, then,
    with the carried states, for the outputs.
    """
    batch, length, channels = u.shape
    states = A.shape[1]
    chunks = length // steps
    if chunks * steps != length:
        raise ValueError(f"length {length} is not a multiple of {steps}")

    def split(t: Tensor) -> Tensor:  # step first, so that a step's values lie together
        return t.reshape(batch * chunks, steps, -1).transpose(0, 1).contiguous()

    delta_s, taken_s, B_s, C_s = split(delta), split(delta * u), split(B), split(C)
    decay = torch.empty(batch * chunks, channels, states)
    h = torch.zeros_like(decay)

    def step(t: int) -> None:
        torch.mul(delta_s[t].unsqueeze(-1), A, out=decay).exp_()
        h.mul_(decay).addcmul_(taken_s[t].unsqueeze(-1), B_s[t].unsqueeze(-2))

    for t in range(steps):
        step(t)
    whole = torch.exp(delta_s.sum(0).unsqueeze(-1) * A).view(batch, chunks, channels, states)
    ends = h.view_as(whole)
    carried = torch.zeros_like(whole)
    for k in range(1, chunks):
        torch.addcmul(ends[:, k - 1], whole[:, k - 1], carried[:, k - 1], out=carried[:, k])
    h.copy_(carried.view_as(h))
    y = torch.empty(steps, batch * chunks, channels)
    for t in range(steps):
        step(t)
        torch.bmm(h, C_s[t].unsqueeze(-1), out=y[t].unsqueeze(-1))
    return y.view(steps, batch, chunks, channels).permute(1, 2, 0, 3).reshape(u.shape) + D * u


def check(length: int = 512) -> None:
    """Every contestant agrees with the definition in float64, outputs and gradients."""
    inputs = make_inputs(length, 32)
    u, delta, A, B, C, D = (t.double() for t in inputs)
    exact = reference.definition(u, delta, A, B, C, D)[0]
    for function in (ours, mambapy_scan, chunked):
        error = (function(*inputs).double() - exact).abs().max() / exact.abs().max()
        if not error < 1e-5:
            raise SystemExit(f"{function.__name__} is wrong: relative error {error:.1e}")
    weights = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for function in (ours, mambapy_scan):
        leaves = [t.clone().requires_grad_() for t in inputs]
        gradients.append(torch.autograd.grad(function(*leaves), leaves, weights))
    for mine, theirs in zip(*gradients, strict=True):
        error = (mine - theirs).abs().max() / theirs.abs().max()
        if not error < 1e-4:
            raise SystemExit(f"a gradient differs from mambapy's: {error:.1e}")


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    milliseconds = torch.tensor(seconds).double() * 1e3
    low, median, high = torch.quantile(milliseconds, torch.tensor([0.25, 0.5, 0.75]).double())
    return low.item(), median.item(), high.item()


Times = dict[str, list[tuple[float, float]]]  # wall and processor seconds of each run


def take_turns(runs: dict[str, Callable[[], object]], seconds: float) -> Times:
    """Each in turn, over and over, until the time is up; at least five times."""
    for run in runs.values():
        run()
    times: Times = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, run in runs.items():
            start, work = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - start, time.process_time() - work))
    return times


def runs_for(length: int) -> dict[tuple[str, str], Callable[[], object]]:
    inputs = make_inputs(length)
    leaves = [t.clone().requires_grad_() for t in inputs]
    weights = torch.randn(inputs[0].shape)

    def forward(function: Callable[..., Tensor]) -> Callable[[], object]:
        def run() -> Tensor:
            with torch.no_grad():
                return function(*inputs)

        return run

    def both(function: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(*leaves), leaves, weights)

    return {
        ("forward", "ours"): forward(ours),
        ("forward", "chunked"): forward(chunked),
        ("forward", "mambapy"): forward(mambapy_scan),
        ("forward+backward", "ours"): both(ours),
        ("forward+backward", "mambapy"): both(mambapy_scan),
    }


# ---- memory and first calls, each in a process of its own

_CHILD = """
import json, os, resource, sys, threading, time
start = time.perf_counter()
import torch
imported = time.perf_counter()
sys.path.insert(0, {folder!r})
import scan_cpu
torch.set_num_threads({threads})
inputs = scan_cpu.make_inputs({length})
weights = torch.randn(inputs[0].shape)
leaves = [t.requires_grad_() for t in inputs]

def call():
    begin = time.perf_counter()
    if {backward}:
        result = torch.autograd.grad(scan_cpu.{name}(*leaves), leaves, weights)
    else:
        with torch.no_grad():
            result = scan_cpu.{name}(*inputs)
    return time.perf_counter() - begin, result

first = call()[0]
def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")  # the peak starts anew
before = resident()
second, result = call()
with open("/proc/self/status") as f:
    peak = next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM"))
results = result if isinstance(result, tuple) else (result,)
own = sum(t.nbytes for t in results) + {backward} * inputs[0].nbytes
print(json.dumps(dict(first=first, second=second, extra=peak - before - own,
    counted=own + sum(t.nbytes for t in inputs) + {backward} * inputs[0].nbytes)))
"""


def in_child(
    name: str, length: int, backward: bool, threads: int, cache: str | None = None
) -> dict:
    """One call in a fresh process: its time, and its peak memory beyond inputs and results."""
    code = _CHILD.format(
        folder=str(Path(__file__).resolve().parent),
        threads=threads,
        length=length,
        backward=backward,
        name=name,
    )
    # Every large block comes from the system and goes back to it, so that the peak says all.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    if cache is not None:
        environment["NUMBA_CACHE_DIR"] = cache
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(answer.stdout)


def machine() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
    return f"{model}, {os.cpu_count()} CPUs, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--lengths", default="2048,16384", help="comma-separated")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each comparison")
    parser.add_argument("--csv", type=Path, help="write the table here as well")
    parser.add_argument("--first-call", action="store_true", help="time compilation and cache too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = machine()
    print(f"{where}; {options.threads} threads", file=sys.stderr)
    check()

    rows: list[dict[str, object]] = []
    for length in (int(text) for text in options.lengths.split(",")):
        runs = runs_for(length)
        for kind in ("forward", "forward+backward"):
            some = {name: run for (k, name), run in runs.items() if k == kind}
            times = take_turns(some, options.seconds)
            peer = [quartiles(list(column))[1] for column in zip(*times["mambapy"], strict=True)]
            for name, pairs in times.items():
                seconds, work = (list(column) for column in zip(*pairs, strict=True))
                low, median, high = quartiles(seconds)
                processor = quartiles(work)[1]
                function = {"mambapy": "mambapy_scan"}.get(name, name)
                memory = in_child(function, length, kind != "forward", options.threads)
                rows.append(
                    {
                        "length": length,
                        "pass": kind,
                        "scan": name,
                        "median_ms": round(median, 3),
                        "q25_ms": round(low, 3),
                        "q75_ms": round(high, 3),
                        "min_ms": round(min(seconds) * 1e3, 3),
                        "processor_ms": round(processor, 3),
                        "runs": len(seconds),
                        "gelements_s": round(length * CHANNELS * STATES / median / 1e6, 3),
                        "times_mambapy": round(peer[0] / median, 2),
                        "times_mambapy_processor": round(peer[1] / processor, 2),
                        "extra_mib": round(memory["extra"] / 2**20, 1),
                        "inputs_outputs_mib": round(memory["counted"] / 2**20, 1),
                        "threads": options.threads,
                        "machine": where,
                    }
                )
    for target in (sys.stdout, options.csv and options.csv.open("w", newline="")):
        if target:
            writer = csv.DictWriter(target, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    if options.first_call:
        with tempfile.TemporaryDirectory() as cache:
            for state in ("compiled", "from the disk cache"):
                for backward in (False, True):
                    answer = in_child("ours", 64, backward, options.threads, cache)
                    kind = "forward+backward" if backward else "forward"
                    print(f"first {kind}, {state}: {answer['first']:.2f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
