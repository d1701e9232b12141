"""The fused mixer equals its parts, in outputs, states and every gradient, and saves its input."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from op_cases import INTERPRETED, PLACES, check_parity, results, run_interpreted
from torch import Tensor

from helpers import assert_close
from mambacore.mixers import MambaMixer
from mambakernels import causal_conv1d, mamba_mixer, selective_scan

HALF = torch.float16 if INTERPRETED else torch.bfloat16
RANK, STATES, CHANNELS, WIDTH, MODEL = 2, 3, 6, 4, 5
NAMES = (
    "x", "in_weight", "in_bias", "conv_weight", "conv_bias", "x_proj", "dt_proj", "A", "D",
    "delta_bias", "out_weight", "out_bias", "conv_state", "ssm_state",
)  # fmt: skip
OPTIONAL = {"in_bias", "conv_bias", "D", "delta_bias", "out_bias", "conv_state", "ssm_state"}


def _inputs(length: int = 37, dtype: torch.dtype = torch.float64, full: bool = True) -> dict:
    generator = torch.Generator().manual_seed(length)
    shapes = {
        "x": (2, length, MODEL),
        "in_weight": (2 * CHANNELS, MODEL),
        "in_bias": (2 * CHANNELS,),
        "conv_weight": (CHANNELS, WIDTH),
        "conv_bias": (CHANNELS,),
        "x_proj": (RANK + 2 * STATES, CHANNELS),
        "dt_proj": (CHANNELS, RANK),
        "A": (CHANNELS, STATES),
        "D": (CHANNELS,),
        "delta_bias": (CHANNELS,),
        "out_weight": (MODEL, CHANNELS),
        "out_bias": (MODEL,),
        "conv_state": (2, WIDTH - 1, CHANNELS),
        "ssm_state": (2, CHANNELS, STATES),
    }
    made = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        value = -value.abs() - 0.1 if name == "A" else value * 0.7
        wide = name in {"A", "D", "delta_bias", "ssm_state"} and dtype != torch.float64
        made[name] = value.to(torch.float32 if wide else dtype).requires_grad_()
    if not full:
        made |= dict.fromkeys(OPTIONAL)
    return made


def _parts(
    v: dict, segment_ids: Tensor | None, zoh: str, backend: str | None = None
) -> tuple[Tensor, ...]:
    u, z = F.linear(v["x"], v["in_weight"], v["in_bias"]).chunk(2, dim=-1)
    u, conv = causal_conv1d(
        u, v["conv_weight"], v["conv_bias"], activation="silu", initial_state=v["conv_state"],
        return_final_state=True, segment_ids=segment_ids, backend=backend,
    )  # fmt: skip
    low, B, C = F.linear(u, v["x_proj"]).split([RANK, STATES, STATES], dim=-1)
    y, ssm = selective_scan(
        u, F.linear(low, v["dt_proj"]), v["A"], B, C, v["D"], z, v["delta_bias"],
        delta_softplus=True, discretization=zoh, initial_state=v["ssm_state"],
        return_final_state=True, segment_ids=segment_ids, backend=backend,
    )  # fmt: skip
    return F.linear(y, v["out_weight"], v["out_bias"]), conv, ssm


def _fused(
    v: dict, segment_ids: Tensor | None, zoh: str, backend: str | None = None
) -> tuple[Tensor, ...]:
    *positional, conv_state, ssm_state = (v[name] for name in NAMES)
    return mamba_mixer(
        *positional, conv_state=conv_state, ssm_state=ssm_state, segment_ids=segment_ids,
        discretization=zoh, backend=backend,
    )  # fmt: skip


def _run(function, v: dict, segment_ids: Tensor | None, zoh: str) -> dict[str, Tensor]:
    outputs = function(v, segment_ids, zoh)
    generator = torch.Generator().manual_seed(9)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outputs]
    loss = sum((o.double() * w).sum() for o, w in zip(outputs, weights, strict=True))
    given = {name: t for name, t in v.items() if t is not None}
    gradients = torch.autograd.grad(loss, list(given.values()))
    named = {f"d{name}": g for name, g in zip(given, gradients, strict=True)}
    return dict(zip(("y", "conv", "ssm"), outputs, strict=True)) | named


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize("zoh", ["euler", "zoh"])
def test_equals_its_parts(full: bool, segments: bool, zoh: str, backend: str) -> None:
    """Also where a backend's backward finds the outputs on its way, as the reference does."""
    v = _inputs(full=full)
    ids = torch.randint(0, 2, (2, 37), generator=torch.Generator().manual_seed(1)).cumsum(1)
    ids = ids // 4 if segments else None
    expected = _run(partial(_parts, backend=backend), v, ids, zoh)
    got = _run(partial(_fused, backend=backend), v, ids, zoh)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        assert_close(got[name], value, 1e-11, name)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, HALF][INTERPRETED:])
def test_every_backend_is_as_exact_as_the_parts(place, dtype: torch.dtype) -> None:
    tensors = {name: t.detach() for name, t in _inputs(19, dtype).items()}
    tensors["ids"] = torch.tensor([[0] * 8 + [4] * 11, [1] * 19])

    def run(v: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
        function = _parts if backend == "reference" else _fused
        return dict(zip(("y", "conv", "ssm"), function(v, v["ids"], "euler", backend), strict=True))

    check_parity(run, tensors, place)


@pytest.mark.skipif(INTERPRETED, reason="already interpreted")
def test_interpreted_kernels() -> None:
    run_interpreted(__file__)


@pytest.mark.parametrize("place", PLACES)
def test_same_inputs_same_bits(place) -> None:
    backend, device = place
    v = {
        k: t.detach().to(device)
        for k, t in _inputs(9 if INTERPRETED else 64, torch.float32).items()
    }

    def run(tensors: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
        return dict(enumerate(_fused(tensors, None, "euler", backend)))

    first = results(run, v, backend)
    for name, value in results(run, v, backend).items():
        assert torch.equal(value, first[name]), name


def test_only_the_input_is_saved() -> None:
    """Beyond the weights: x, and nothing of the inner width."""
    v = _inputs(length=512, dtype=torch.float32, full=False)
    activations: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.numel() >= 2 * 512:
            activations.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _fused(v, None, "euler")
    assert sum(activations) == 2 * 512 * MODEL * 4


def test_autocast_casts_the_matrices_and_not_the_state() -> None:
    v = _inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, conv, ssm = _fused(v, None, "euler")
        expected = _parts(v, None, "euler")
    assert (y.dtype, conv.dtype, ssm.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert_close(y, expected[0], 2e-2)
    y.float().sum().backward()
    assert v["in_weight"].grad.dtype == torch.float32


def test_compiles_as_one_graph() -> None:
    v = _inputs(dtype=torch.float32)
    expected = _fused(v, None, "euler")
    compiled = torch.compile(lambda: _fused(v, None, "euler"), fullgraph=True, backend="aot_eager")
    for got, value in zip(compiled(), expected, strict=True):
        assert_close(got, value, 1e-5)


def test_registration_is_sound() -> None:
    v = _inputs(length=7, dtype=torch.float32)
    arguments = [v[name] for name in NAMES]
    torch.library.opcheck(
        torch.ops.mambakernels.mamba_mixer.default, (*arguments, None, False, "cpu", True)
    )


def test_second_derivative_is_refused() -> None:
    v = _inputs(length=5)
    y, _, _ = _fused(v, None, "euler")
    (gradient,) = torch.autograd.grad(y.square().sum(), v["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(gradient.sum(), v["x"])


def test_wrong_shapes_are_named() -> None:
    v = _inputs()
    v["dt_proj"] = torch.randn(CHANNELS + 1, RANK, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"dt_proj_weight has shape .*\(channels, rank\)"):
        _fused(v, None, "euler")


@pytest.mark.parametrize("carried", [False, True])
def test_the_models_mixer_recomputes_when_asked(carried: bool) -> None:
    """The same outputs, states and gradients, and a sixth of the memory or less."""
    torch.manual_seed(0)
    mixers = [MambaMixer(16, recompute=recompute) for recompute in (False, True)]
    mixers[1].load_state_dict(mixers[0].state_dict())
    x = torch.randn(2, 60, 16)
    ids = torch.arange(60).repeat(2, 1) // 25
    with torch.no_grad():
        state = mixers[0](torch.randn(2, 9, 16))[1] if carried else None
    results, saved = [], []
    for mixer in mixers:
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t.numel() * (t.shape[:2] == (2, 60))) or t,
            lambda t: t,
        ):
            y, after = mixer(x, state, segment_ids=ids)
        loss = y.square().sum() + after.conv.sum() + after.ssm.sum()
        results.append((y, *torch.autograd.grad(loss, list(mixer.parameters()))))
        saved.append(sum(kept))
    for one, other in zip(*results, strict=True):
        assert_close(other, one.detach(), 1e-5)
    assert saved[1] * 6 <= saved[0]
