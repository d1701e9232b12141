"""The graph engine's periods on a GPU (interpreted elsewhere, replayed by running them again)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_cases import DEVICE, INTERPRETED, TRITON, run_interpreted

from mambaaudio import Generator, WaveformConfig, WaveformModel
from mambaaudio import generator as generation
from mambaaudio.engines import TorchEngine
from mambaaudio.graph import GraphEngine, _FusedPeriod
from mambacore.multiscale import MultiScaleConfig

pytest.importorskip("triton")

STEADY = {"core_temperature": 0.8}


@pytest.mark.skipif(INTERPRETED, reason="it starts the interpreted ones")
def test_interpreted() -> None:
    run_interpreted(__file__)


class _Again:
    """A captured period where there are no CUDA graphs."""

    def __init__(self, memory: _FusedPeriod) -> None:
        self.replay = lambda: memory.steps(0)


@pytest.mark.parametrize("place", [TRITON])
def test_fused_periods_draw_what_steps_draw(
    place: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if INTERPRETED:
        monkeypatch.setattr(_FusedPeriod, "capture", lambda memory: _Again(memory))
        monkeypatch.setattr(generation, "choose", lambda model, engine: GraphEngine)
    monkeypatch.setattr(generation, "SECONDS", 0.0005)  # choices every four samples
    torch.manual_seed(2)
    backbone = MultiScaleConfig(
        d_model=12, pools=(2, 2), n_layer=1, expand=1.5, mixers=("mamba", "s4d", "mamba")
    )
    sound = 0.3 * np.sin(np.arange(7)).astype(np.float32)
    loud = np.where(np.arange(7) % 2, -0.98, 0.98).astype(np.float32)
    for kind, options in (
        ("mulaw8", {"temperature": 0.7}),
        ("mulaw8", {"top_k": 50}),
        ("mulaw8", {"core_temperature": 0.5}),
        ("mulaw8", {"guidance": 2.0, "prompt": sound}),
        ("mulaw8", {"candidates": 3, "prompt": sound}),
        ("mulaw8", {**STEADY, "candidates": 2, "prompt": [loud, sound], "guidance": 2.0}),
        ("pcm16", {"guidance": 2.0}),
    ):
        config = WaveformConfig(8000, code=kind, backbone=backbone, labels=("a",), end_event=True)
        model = WaveformModel(config).eval()
        with torch.no_grad():
            model.head.weight *= 4
            model.head.bias[config.end] = 3.0  # some rows shall end
        model = model.to(DEVICE)
        told = {"label": ["a", None], "batch": 2, "seed": 4, **options}
        fused = Generator(model).begin(**told)
        with monkeypatch.context() as patch:
            patch.setattr(generation, "choose", lambda model, engine: TorchEngine)
            steps = Generator(model).begin(**told)
        for count in (2, 5):
            one, other = fused._block(count), steps._block(count)
            for row in range(2):
                assert np.array_equal(one.waveforms[row], other.waveforms[row]), options
            assert np.array_equal(one.ended, other.ended)
        assert np.allclose(fused.log_likelihood, steps.log_likelihood, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["graph", "graph-modules"])
@pytest.mark.parametrize("heard", [296, 301])
def test_captured_periods_go_on_as_the_chosen_do(
    engine: str, heard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of whole periods of 8 and of others; choices before and after the capture."""
    monkeypatch.setattr(generation, "SECONDS", 0.003)
    torch.manual_seed(2)
    backbone = MultiScaleConfig(
        d_model=12, pools=(4, 2), n_layer=1, mixers=("mamba", "s4d", "mamba")
    )
    model = WaveformModel(WaveformConfig(8000, backbone=backbone, labels=("a",))).eval().cuda()
    sound = (0.3 * np.sin(np.arange(heard))).astype(np.float32)
    options = {"label": ["a", None], "batch": 2, "seed": 4, "prompt": [sound, 0.9 * sound]}
    for guidance in (1.0, 2.0):
        steps, plain = (
            Generator(model, engine=kind).generate(
                0.04, guidance=guidance, candidates=candidates, **options
            )
            for kind, candidates in (("torch", 3), (engine, 1))
        )
        session = Generator(model, engine=engine).begin(guidance=guidance, candidates=3, **options)
        pieces = list(session.blocks(0.04, block=37))
        for row, samples in enumerate(steps.waveforms):
            made = np.concatenate([piece.waveforms[row] for piece in pieces])
            assert np.array_equal(made, samples)
            assert not np.array_equal(plain.waveforms[row], samples)
