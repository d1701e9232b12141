"""Speed of generation on a GPU with a captured graph: samples a second, all rows together.

    python mambaaudio/bench/generate_gpu.py [--batches 1,16,64,256,1024] [--periods 64]
        [--model RUN | --mixers mamba] [--dtype bfloat16] [--engine graph]

A trained model, or the default U-net (6 M parameters, pools 4 and 4) with random weights;
temperature 1. Correctness first: the graph draws what the model's own steps draw. The time
includes the drawing of uniform numbers, their way to the device, sampling, and the symbols' way
back.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from mambaaudio import Generator, WaveformConfig, WaveformModel
from mambacore.multiscale import MultiScaleConfig

RATE = 16000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batches", default="1,16,64,256,1024")
    parser.add_argument(
        "--periods", type=int, default=64, help="of the slowest level, a measurement"
    )
    parser.add_argument("--model", help="run or model folder")
    parser.add_argument("--mixers", default="mamba", help="one name, or one a level with commas")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--engine", default="graph", choices=("graph", "graph-modules", "torch"))
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.model:
        model = WaveformModel.from_pretrained(options.model, device="cuda").eval()
    else:
        backbone = MultiScaleConfig(mixers=tuple(options.mixers.split(",")))
        model = WaveformModel(WaveformConfig(RATE, backbone=backbone)).eval().cuda()
    rate, backbone = model.config.rate, model.config.backbone
    if model.config.end is not None:  # no row ends: full batches are timed
        with torch.no_grad():
            model.head.bias.view(model.phases, -1)[:, model.config.end] = -1e4
    made = [
        Generator(model, engine=engine).generate(0.01, seed=1, batch=2).waveforms
        for engine in ("torch", options.engine)
    ]
    same = np.mean([np.mean(a == b) for a, b in zip(*made, strict=True)])
    print(f"{same:.1%} of the samples are those of the model's own steps (float32)")
    model = model.to(getattr(torch, options.dtype))
    count = sum(p.numel() for p in model.parameters())
    mixers = ",".join(backbone.mixers)
    print(f"{torch.cuda.get_device_name()}, {count:,} parameters, {mixers}, {options.dtype}")
    print("batch\tsamples_per_s\tx_real_time_a_row\tpeak_MiB")
    for batch in (int(number) for number in options.batches.split(",")):
        torch.cuda.reset_peak_memory_stats()
        session = Generator(model, engine=options.engine).begin(batch=batch)
        count = options.periods * backbone.total_pool
        list(session.blocks(2 * backbone.total_pool / rate))  # compiles, captures
        rates = []
        for _ in range(5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            list(session.blocks(count / rate, block=count))
            torch.cuda.synchronize()
            rates.append(batch * count / (time.perf_counter() - start))
        speed, peak = float(np.median(rates)), torch.cuda.max_memory_allocated() / 2**20
        print(f"{batch}\t{speed:.0f}\t{speed / batch / rate:.3f}\t{peak:.0f}", flush=True)
        del session


if __name__ == "__main__":
    main()
