"""Fused decoding steps on a GPU (interpreted elsewhere): those of the modules, and their draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_cases import DEVICE, INTERPRETED, TRITON, CompiledOnly, run_interpreted
from torch import nn

from helpers import assert_close
from mambacore.decoding_gpu import DeviceDecoding, why_not
from mambacore.multiscale import MultiScaleBackbone, MultiScaleConfig

pytest.importorskip("triton")


@pytest.mark.skipif(INTERPRETED, reason="it starts the interpreted ones")
def test_interpreted() -> None:
    run_interpreted(__file__)


MAMBA = {"mixer_options": {"mamba": {"d_state": 6, "d_conv": 3}}}
MIXED = {
    "mixers": ("s4d", "s4d", "mamba"),
    "mlp_expand": (1.35, 0.0, 0.0),
    "mixer_options": {"s4d": {"d_state": 6}},
}


def _parts(phases: int, unet: bool = True, **options):
    torch.manual_seed(0)
    # Widths that are no powers of two.
    config = MultiScaleConfig(
        d_model=20, pools=(2, 3), n_layer=2, expand=1.5, unet=unet, **(options or MAMBA)
    )
    backbone = MultiScaleBackbone(config).eval()
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "pool" in name and parameter.dim() == 2:
                parameter.normal_(std=0.3)
    embedding, head = nn.Embedding(phases * 11, 20), nn.Linear(20, phases * 11)
    return backbone.to(DEVICE), embedding.to(DEVICE), head.to(DEVICE)


def _check(phases: int, unet: bool, cut: int, **options) -> None:
    backbone, embedding, head = _parts(phases, unet, **options)
    codes = torch.randint(11, (2, cut + 9), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    turn = torch.arange(codes.shape[1], device=DEVICE) % phases
    condition = torch.randn(2, 20, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    with torch.no_grad():
        x = embedding(codes + turn * 11) + condition[:, None]
        scores = head(backbone(x)[0]).unflatten(-1, (phases, 11))
        expected = scores[:, torch.arange(codes.shape[1]), turn]
        state = backbone(x[:, :cut])[1] if cut else None
        fused = DeviceDecoding(backbone, embedding, head, state, condition, 2, phases=phases)
        for t in range(cut, codes.shape[1]):
            got = torch.full((2, 11), torch.nan, device=DEVICE)
            fused.step(codes[:, t].contiguous(), t, scores=got)
            assert_close(got, expected[:, t], 1e-5, f"step {t}")


def _check_draws() -> None:
    from mambakernels.decode import triton

    random = torch.Generator().manual_seed(3)
    rows, width, count = 5, 20, 11
    x = torch.randn(rows, width, generator=random).to(DEVICE)
    weight = torch.randn(width, count, generator=random).to(DEVICE)
    bias = torch.randn(count, generator=random).to(DEVICE)
    norm = torch.ones(width, device=DEVICE)
    scores = torch.empty(rows, count, device=DEVICE)
    triton.head(x, norm, weight, bias, 1e-5, scores=scores)
    for temperature, allowed in ((1.0, None), (0.5, 10)):
        uniform = torch.rand(rows, generator=random, dtype=torch.float64).to(DEVICE)
        last = torch.zeros(rows, dtype=torch.int64, device=DEVICE)
        ended = torch.tensor([0, 0, 1, 0, 0], dtype=torch.int8, device=DEVICE)
        symbols = torch.zeros(rows, 3, dtype=torch.int64, device=DEVICE)
        logs = torch.zeros(rows, 3, device=DEVICE)
        triton.head(
            x, norm, weight, bias, 1e-5, uniform=uniform, last=last, ended=ended,
            symbols=symbols[:, 1], logs=logs[:, 1], temperature=temperature, allowed=allowed,
            end=10,
        )  # fmt: skip
        mass = (scores[:, :allowed].double() / temperature).softmax(-1).cumsum(-1)
        drawn = (mass <= uniform[:, None] * mass[:, -1:]).sum(-1)
        drawn[2] = 10
        assert torch.equal(last, drawn)
        assert torch.equal(symbols[:, 1], drawn)
        assert torch.equal(ended != 0, drawn == 10)
        wanted = scores.log_softmax(-1).gather(1, drawn[:, None])[:, 0]
        wanted[2] = 0
        assert_close(logs[:, 1], wanted, 1e-5)
        assert not symbols[:, [0, 2]].any()
    assert np.isfinite(logs.cpu().numpy()).all()


@pytest.mark.parametrize("place", [TRITON])
def test_a_fused_step_is_the_modules(place: tuple[str, str]) -> None:
    for phases, unet, cut in ((1, True, 0), (2, True, 6), (1, False, 8)):
        _check(phases, unet, cut)
    _check(1, True, 6, **MIXED)


@pytest.mark.parametrize("place", [TRITON])
def test_draws_follow_the_scores(place: tuple[str, str]) -> None:
    _check_draws()


@pytest.mark.skipif(INTERPRETED or DEVICE != "cuda", reason="compiled, not interpreted")
def test_the_kernels_compile_for_a_gpu_also_where_there_is_none(monkeypatch) -> None:
    from mambakernels.decode import triton, triton_s4d

    kernels = {name: CompiledOnly(getattr(triton, name)) for name in ("_stage", "_head")}
    for name, kernel in kernels.items():
        monkeypatch.setattr(triton, name, kernel)
    s4d = CompiledOnly(triton_s4d._stage)
    monkeypatch.setattr(triton_s4d, "_stage", s4d)
    torch.manual_seed(0)
    backbone = MultiScaleBackbone(MultiScaleConfig(d_model=8, pools=(2,), n_layer=1)).eval()
    fused = DeviceDecoding(backbone, nn.Embedding(11, 8), nn.Linear(8, 11), None, None, 2)
    fused.step(torch.zeros(2, dtype=torch.int64), 0, scores=torch.empty(2, 11))
    whole = {"uniform": torch.rand(2, dtype=torch.float64), "logs": torch.empty(2)}
    whole |= {name: torch.zeros(2, dtype=torch.int64) for name in ("last", "symbols")}
    whole |= {"ended": torch.zeros(2, dtype=torch.int8), "end": 10}
    fused.step(torch.zeros(2, dtype=torch.int64), 1, **whole)
    assert kernels["_stage"].compiled == 5  # two a step, and the slower level's
    assert kernels["_head"].compiled == 2
    for mlp in (0, 1.35):
        config = MultiScaleConfig(
            d_model=8, pools=(2,), n_layer=1, mixers=("s4d", "mamba"), mlp_expand=(mlp, 0)
        )
        backbone = MultiScaleBackbone(config).eval()
        fused = DeviceDecoding(backbone, nn.Embedding(11, 8), nn.Linear(8, 11), None, None, 2)
        fused.step(torch.zeros(2, dtype=torch.int64), 0, scores=torch.empty(2, 11))
    assert s4d.compiled == 4


def test_what_has_no_fused_step_says_why() -> None:
    small = {"d_model": 8, "pools": (2,), "n_layer": 1}
    attention = MultiScaleConfig(mixers=("attention",), **small)
    assert "Attention" in (why_not(MultiScaleBackbone(attention)) or "")
    assert (
        why_not(MultiScaleBackbone(MultiScaleConfig(mixers=("s4d",), mlp_expand=1, **small)))
        is None
    )
    assert "MLP" in (why_not(MultiScaleBackbone(MultiScaleConfig(mlp_expand=1, **small))) or "")
    assert why_not(MultiScaleBackbone(MultiScaleConfig(**small))) is None
