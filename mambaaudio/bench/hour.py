"""Memory of an hour: generated to a WAV, or scored from one, on one CPU core.

    python mambaaudio/bench/hour.py generate hour.wav [--seconds 3600] [--rate 8000] [--model RUN]
    python mambaaudio/bench/hour.py score hour.wav [--model RUN]

Prints, after 1, 10 and 60 minutes of sound, the memory in use then (VmRSS) and the highest so far
(VmHWM), both of the whole process, and samples a second. Without a model: one of preset `tiny`
with random weights, which costs what a trained one does.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from mambaaudio import Generator, WaveformConfig, WaveformModel
from mambaaudio.bits import Scorer
from mambaaudio.scoring import score_file
from mambaaudio.writer import WaveformWriter
from mambacore.multiscale import MultiScaleConfig

POINTS = (60, 600, 1800, 3600)


def memory() -> tuple[float, float]:
    """MiB in use and at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)
           if name in ("VmRSS", "VmHWM")}  # fmt: skip
    return kib["VmRSS"] / 1024, kib["VmHWM"] / 1024


class Log:
    """A row of figures whenever one of the points has been passed."""

    def __init__(self, rate: int) -> None:
        self._rate, self._begun, self._left = rate, time.perf_counter(), list(POINTS)
        self._said = 0.0
        used, peak = memory()
        print("seconds\tVmRSS_MiB\tVmHWM_MiB\tsamples_per_s")
        print(f"0\t{used:.1f}\t{peak:.1f}\t", flush=True)

    def __call__(self, seconds: float, *, last: bool = False) -> None:
        if (last and seconds > self._said) or (self._left and seconds >= self._left[0]):
            self._left = [point for point in self._left if point > seconds]
            self._said = seconds
            used, peak = memory()
            speed = seconds * self._rate / (time.perf_counter() - self._begun)
            print(f"{seconds:.0f}\t{used:.1f}\t{peak:.1f}\t{speed:.0f}", flush=True)


def tiny(rate: int) -> WaveformModel:
    """Preset `tiny` of `mambaaudio fit`, untrained."""
    torch.manual_seed(0)
    backbone = MultiScaleConfig(d_model=16, n_layer=1, pools=(4, 4), mixers=("s4d", "s4d", "mamba"))
    return WaveformModel(WaveformConfig(rate, backbone=backbone)).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("generate", "score"))
    parser.add_argument("path", type=Path, help="the WAV to write, or to score")
    parser.add_argument("--model", help="run or model folder")
    parser.add_argument("--rate", type=int, default=8000, help="without a model")
    parser.add_argument("--seconds", type=float, default=3600.0, help="to generate")
    parser.add_argument("--floor", action="store_true", help="score: also linear prediction")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = WaveformModel.from_pretrained(options.model) if options.model else tiny(options.rate)
    rate = model.config.rate
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {rate} Hz", flush=True)
    log = Log(rate)
    if options.what == "score":
        score = score_file(
            Scorer(model), options.path, floor=options.floor, progress=lambda at, _: log(at)
        )
        log(score.seconds, last=True)
        return
    session, made = Generator(model).begin(), 0
    with WaveformWriter(options.path, rate) as out:
        for block in session.blocks(options.seconds):
            out.write(block.waveforms[0])
            made += len(block.waveforms[0])
            log(made / rate)
    log(made / rate, last=True)


if __name__ == "__main__":
    main()
