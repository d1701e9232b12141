"""Speed of generation on the CPU, beside its floor: samples a second at batch 1.

    python mambaaudio/bench/generate_cpu.py [--threads 2] [--seconds 5] [--mixers mamba] [--large]

Correctness first: the compiled loop and the model's own steps draw the same samples. The floor is
what a sample must cost: multiply-adds of the maps (slow levels count as often as they are due),
exponentials of the recurrences, and bytes of weights and states that are read. The model's own
steps in torch stand beside the compiled loop.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from mambaaudio import Generator, WaveformConfig, WaveformModel
from mambacore.mixers.mamba import MambaMixer
from mambacore.mixers.s4d import S4DMixer
from mambacore.multiscale import MultiScaleConfig

RATE = 16000
SIZES = {"1 M": {"d_model": 32, "n_layer": 5}, "6 M": {"d_model": 64, "n_layer": 8}}


def make_model(mixers: tuple[str, ...], **sizes: int) -> WaveformModel:
    """The default three-stage U-net (pools 4 and 4), scaled; random weights."""
    torch.manual_seed(0)
    config = WaveformConfig(RATE, backbone=MultiScaleConfig(mixers=mixers, **sizes))
    return WaveformModel(config).eval()


def floor(model: WaveformModel) -> tuple[float, float, float]:
    """(multiply-adds, exponentials, bytes of weights and state) a sample."""
    work = exponentials = size = 0.0
    level, share = model.backbone.level, 1.0
    work += model.head.weight.numel()
    size += 4 * model.head.weight.numel()
    while True:
        stages = [level.up] if level.slowest or level.down is None else [level.down, level.up]
        for block in (block for stage in stages for block in stage.blocks):
            maps = sum(m.weight.numel() for m in block.modules() if hasattr(m, "in_features"))
            work += share * maps
            size += share * 4 * sum(p.numel() for p in block.parameters())
            mixer = block.mixer
            if isinstance(mixer, MambaMixer):
                numbers = mixer.d_inner * mixer.d_state
                work += share * 3 * numbers
                exponentials += share * numbers
                size += share * 8 * numbers
            elif isinstance(mixer, S4DMixer):
                numbers = mixer.d_model * mixer.modes
                work += share * 7 * numbers
                size += share * 8 * 8 * numbers
        if level.slowest:
            return work, exponentials, size
        share /= level.pool
        pools = level.pool_down.weight.numel() + level.pool_up.weight.numel()
        work, size, level = work + share * pools, size + share * 4 * pools, level.below


def speed(model: WaveformModel, engine: str, seconds: float, batch: int) -> float:
    """Samples a second of one row, the median of stretches after a first one."""
    session = Generator(model, engine=engine).begin(batch=batch)
    count = 16 if engine == "torch" else 2048
    list(session.blocks(count / RATE))
    rates, begun = [], time.perf_counter()
    while len(rates) < 3 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        list(session.blocks(count / RATE))
        rates.append(count / (time.perf_counter() - start))
    return float(np.median(rates))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring, a row")
    parser.add_argument("--mixers", default="mamba", help="one name, or one a level with commas")
    parser.add_argument("--large", action="store_true", help="also the model of 6 M parameters")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    mixers = tuple(options.mixers.split(","))
    for name in SIZES if options.large else ("1 M",):
        model = make_model(mixers, **SIZES[name])
        same = [
            Generator(model, engine=engine).generate(0.02, seed=1).waveforms[0]
            for engine in ("torch", "compiled")
        ]
        if not np.array_equal(*same):
            raise SystemExit("the compiled loop draws other samples than the model")
        work, exponentials, size = floor(model)
        count = sum(p.numel() for p in model.parameters())
        print(
            f"{name}: {count:,} parameters, {', '.join(mixers)}; a sample: {work / 1e3:.0f} k "
            f"multiply-adds, {exponentials / 1e3:.1f} k exponentials, {size / 1e3:.0f} kB read"
        )
        for engine, batch in (("torch", 1), ("compiled", 1), ("compiled", options.threads)):
            rate = speed(model, engine, options.seconds, batch)
            print(
                f"  {engine:8} batch {batch}: {rate * batch:7.0f} samples/s in all, "
                f"{rate / RATE:.3f} x real time at {RATE} Hz a row, "
                f"{rate * work / 1e9:.2f} G multiply-adds/s a row"
            )


if __name__ == "__main__":
    main()
