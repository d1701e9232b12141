"""The decoding step: parity, steps = scan, in place, gradients, torch.compile, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DTYPES, EXAMPLES, INTERPRETED, PLACES, memory_full_of_nan, run_interpreted
from torch import Tensor

from helpers import assert_as_exact
from mambakernels import selective_scan, selective_state_step
from mambakernels.step import op

BACKENDS = ["reference", "cpu"]
OPTIONAL = ("D", "z", "delta_bias")


def make(
    batch: int = 2, channels: int = 19, states: int = 5, *, dtype: torch.dtype = torch.float32,
    extras: tuple[str, ...] = OPTIONAL, seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = {
        "state": normal(batch, channels, states).to(wide),
        "u": normal(batch, channels).to(dtype),
        "delta": (normal(batch, channels) - 1).to(dtype),
        "A": (-4 * torch.rand(channels, states, generator=generator)).to(wide),
        "B": normal(batch, 2 * states).to(dtype).chunk(2, -1)[0],
        "C": normal(batch, states).to(dtype),
        "D": normal(channels).to(wide),
        "z": normal(batch, channels).to(dtype),
        "delta_bias": normal(channels).to(wide),
    }
    return {k: t for k, t in tensors.items() if k not in OPTIONAL or k in extras}


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(
    batch=st.integers(0, 3),
    channels=st.one_of(st.integers(1, 40), st.sampled_from([127, 130])),
    states=st.one_of(st.sampled_from([1, 4, 16, 64]), st.integers(1, 40)),
    dtype=st.sampled_from(DTYPES),
    extras=st.sets(st.sampled_from(OPTIONAL)).map(tuple),
    softplus=st.booleans(),
    discretization=st.sampled_from(["euler", "zoh"]),
    inplace=st.booleans(),
    seed=st.integers(0, 99),
)
def test_drawn_cases_agree_with_the_definition(
    place, batch, channels, states, dtype, extras, softplus, discretization, inplace, seed
) -> None:
    tensors = make(batch, channels, states, dtype=dtype, extras=extras, seed=seed)
    if not softplus:
        # positive steps: a growing state would leave float16's range
        tensors["delta"] = tensors["delta"].abs() * 0.3
        if "delta_bias" in tensors:
            tensors["delta_bias"] = tensors["delta_bias"].abs() * 0.1
    backend, device = place
    options = {"delta_softplus": softplus, "discretization": discretization}
    double = {k: t.double() for k, t in tensors.items()}
    exact = selective_state_step(**double, **options, backend="reference")
    base = selective_state_step(**tensors, **options, backend="reference")
    moved = {k: t.to(device) for k, t in tensors.items()}
    with memory_full_of_nan():
        got = selective_state_step(**moved, **options, inplace=inplace, backend=backend)
    assert (got[1] is moved["state"]) == inplace
    for name, mine, right, plain in zip(("out", "state"), got, exact, base, strict=True):
        assert mine.dtype == plain.dtype
        assert_as_exact(mine.cpu(), right, plain, name, dtype=dtype)


@pytest.mark.skipif(INTERPRETED, reason="already interpreted")
def test_interpreted_kernels() -> None:
    run_interpreted(__file__)


@pytest.mark.parametrize("discretization", ["euler", "zoh"])
def test_steps_are_the_scan(discretization) -> None:
    generator = torch.Generator().manual_seed(1)
    steps = [make(dtype=torch.float64, seed=seed) for seed in range(30)]
    common = {k: steps[0][k] for k in ("A", "D", "delta_bias")}
    per_step = {k: torch.stack([s[k] for s in steps], 1) for k in ("u", "delta", "B", "C", "z")}
    state = torch.randn(steps[0]["state"].shape, generator=generator, dtype=torch.float64)
    options = {"delta_softplus": True, "discretization": discretization}
    whole, final = selective_scan(
        **per_step, **common, **options, initial_state=state, return_final_state=True
    )
    for t in range(30):
        now = {k: v[:, t] for k, v in per_step.items()}
        out, state = selective_state_step(state, **now, **common, **options)
        torch.testing.assert_close(out, whole[:, t])
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("discretization", ["euler", "zoh"])
def test_gradients_are_the_slopes_to_second_order(backend, discretization) -> None:
    tensors = make(1, 2, 2, dtype=torch.float64)
    tensors["A"][0, 0] = 0.0
    names = list(tensors)

    def run(*values):
        return selective_state_step(
            **dict(zip(names, values, strict=True)), delta_softplus=True,
            discretization=discretization, backend=backend,
        )  # fmt: skip

    leaves = [t.detach().clone().requires_grad_() for t in tensors.values()]
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_place_also_where_the_state_is_a_view(backend: str) -> None:
    tensors = make()
    wide = torch.zeros(2, 19, 10)
    view = wide[..., ::2]
    view.copy_(tensors["state"])
    out, expected = selective_state_step(**tensors, backend=backend)
    again, state = selective_state_step(**{**tensors, "state": view}, inplace=True, backend=backend)
    assert state is view
    assert torch.equal(out, again)
    assert torch.equal(view, expected)
    assert wide[..., 1::2].abs().max() == 0


@pytest.mark.parametrize("extras", [(), OPTIONAL], ids=len)
def test_opcheck(extras: tuple[str, ...]) -> None:
    tensors = make(extras=extras)
    names = ("state", "u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    given = [tensors.get(k) for k in names]
    torch.library.opcheck(op.selective_state_step, (*given, True, False, "cpu"))


@pytest.mark.parametrize("with_gradient", [False, True])
def test_compiles_without_a_break(with_gradient: bool) -> None:
    tensors = {k: t.requires_grad_(with_gradient) for k, t in make().items()}

    def run(**given: Tensor) -> tuple[Tensor, Tensor]:
        return selective_state_step(**given, delta_softplus=True)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for mine, expected in zip(compiled(**tensors), run(**tensors), strict=True):
        torch.testing.assert_close(mine, expected)
        assert mine.requires_grad == with_gradient


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"state": torch.zeros(2, 19)}, ValueError, "state has 2 dimensions"),
        ({"state": torch.zeros(2, 19, 5).double()}, TypeError, "state has dtype torch.float64"),
        ({"u": torch.zeros(2, 18)}, ValueError, "u has shape"),
        ({"delta": torch.zeros(2, 19, dtype=torch.int64)}, TypeError, "delta has dtype"),
        ({"A": torch.zeros(19, 6)}, ValueError, "A has shape"),
        ({"A": torch.zeros(19, 5).bfloat16()}, TypeError, "A has dtype torch.bfloat16"),
        ({"C": torch.zeros(1, 5)}, ValueError, "C has shape"),
        ({"z": torch.zeros(2, 19, device="meta")}, ValueError, "z is on meta"),
        ({"D": torch.zeros(5)}, ValueError, "D has shape"),
        ({"discretization": "bilinear"}, ValueError, "discretization='bilinear'"),
        ({"backend": "cuda"}, ValueError, "backend='cuda'"),
    ],
)
def test_refusals_name_the_argument(change: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        selective_state_step(**{**make(), **change})


def test_in_place_is_refused_where_a_gradient_is_needed() -> None:
    tensors = make()
    tensors["u"].requires_grad_()
    with pytest.raises(ValueError, match="inplace=True"):
        selective_state_step(**tensors, inplace=True)
    with torch.no_grad():
        selective_state_step(**tensors, inplace=True)
