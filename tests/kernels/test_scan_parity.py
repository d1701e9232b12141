"""The CPU scan gives what the definition gives, in every result, for drawn sizes and options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import Case, check_parity, results

from mambakernels.scan import cpu

EXTRAS = ("D", "z", "delta_bias", "initial_state")


@pytest.fixture(autouse=True)
def _memory_full_of_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that what a kernel forgets to write cannot pass for zero."""

    def poisoned(make):
        def made(*args, **kwargs):
            memory = make(*args, **kwargs)
            floating = memory.is_floating_point() if torch.is_tensor(memory) else True
            if floating and not (torch.is_tensor(memory) and memory.device.type == "meta"):
                memory.fill_(float("nan")) if torch.is_tensor(memory) else memory.fill(np.nan)
            return memory

        return made

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    monkeypatch.setattr(cpu, "aligned", poisoned(cpu.aligned))


drawn_cases = st.builds(
    Case,
    batch=st.integers(1, 3),
    length=st.one_of(st.sampled_from([1, 2, 63, 64, 65, 128]), st.integers(1, 150)),
    channels=st.one_of(st.sampled_from([1, 15, 16, 17]), st.integers(1, 70)),
    states=st.one_of(st.sampled_from([1, 4, 16]), st.integers(1, 20)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    softplus=st.booleans(),
    discretization=st.sampled_from(["euler", "zoh"]),
    reverse=st.booleans(),
    segments=st.booleans(),
    extras=st.sets(st.sampled_from(EXTRAS)).map(lambda names: tuple(sorted(names))),
    seed=st.integers(0, 1000),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(drawn_cases)
def test_drawn_cases_agree_with_the_definition(case: Case) -> None:
    check_parity(case, "cpu")


@pytest.mark.parametrize("discretization", ["euler", "zoh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_long_odd_length_with_everything(dtype: torch.dtype, discretization: str) -> None:
    check_parity(
        Case(
            batch=1,
            length=500,
            channels=33,
            states=16,
            dtype=dtype,
            discretization=discretization,
            segments=True,
            seed=7,
        ),
        "cpu",
    )


def test_mixed_dtypes() -> None:
    """u and z in bfloat16, delta in float32, B and C in float16: each gradient in its own."""
    case = Case(dtype=torch.bfloat16, seed=3)
    inputs = case.inputs()
    inputs["delta"] = inputs["delta"].float()
    inputs["B"], inputs["C"] = inputs["B"].half(), inputs["C"].half()
    got, expected = results(case, inputs, "cpu"), results(case, inputs, "reference")
    for name, value in got.items():
        assert value.dtype == expected[name].dtype, name
        torch.testing.assert_close(value, expected[name], rtol=2e-2, atol=2e-2, msg=name)


def test_strided_rows_need_no_copy_and_stay_apart() -> None:
    """Slices of wider projections (u and z of one tensor; B, C and delta of another)."""
    case = Case(channels=24, states=6, seed=5)
    inputs = case.inputs()
    plain = results(case, inputs, "cpu")
    xz = torch.cat([inputs["u"], inputs["z"]], -1)
    inputs["u"], inputs["z"] = xz.chunk(2, -1)
    joined = torch.cat([inputs["delta"], inputs["B"], inputs["C"]], -1)
    inputs["delta"], inputs["B"], inputs["C"] = joined.split([24, 6, 6], -1)
    assert not inputs["u"].is_contiguous()
    out = cpu.forward(
        *(inputs[k] for k in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")),
        inputs["initial_state"], None, True, False, False,
    )[0]  # fmt: skip
    assert torch.equal(out, plain["out"])


@pytest.mark.parametrize("discretization", ["euler", "zoh"])
def test_extreme_steps_and_rates(discretization: str) -> None:
    """A of zero, growing and tiny rates, delta of zero, huge and negative, as the definition."""
    rule = {"softplus": False, "discretization": discretization}
    case = Case(batch=1, length=40, channels=4, states=6, extras=("D", "initial_state"), **rule)
    inputs = case.inputs()
    inputs["A"] = torch.tensor([[0.0, 1e-8, -1e-8, 1e-3, -1e3, 0.5]]).repeat(4, 1)
    inputs["delta"][:, ::5] = 0
    inputs["delta"][:, 6, 0] = 30.0
    inputs["delta"][:, 2::7, 1] = -1e-3
    got = results(case, inputs, "cpu")
    expected = results(case, inputs, "reference", double=True)
    for name, value in got.items():
        torch.testing.assert_close(
            value.double(), expected[name], rtol=2e-5, atol=2e-6 * float(expected[name].abs().max())
        )


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "z"])
def test_nan_and_infinity_are_not_hidden(name: str) -> None:
    """A NaN or an infinity going in comes out where the definition lets it out."""
    for value in (float("nan"), float("inf")):
        case = Case(batch=1, length=70, channels=17, softplus=False, extras=("z",))
        inputs = case.inputs()
        inputs[name].view(-1)[3] = value
        arguments = [inputs[k] for k in ("u", "delta", "A", "B", "C")]
        rest = (None, inputs["z"], None, None, None, False, False, False)
        out, state, _ = cpu.forward(*arguments, *rest)
        from mambakernels.scan import reference

        expected_out, expected_state, _ = reference.forward(*arguments, *rest)
        assert torch.equal(out.isfinite(), expected_out.isfinite())
        assert torch.equal(state.isfinite(), expected_state.isfinite())


def test_reset_keeps_an_overflow_in_its_segment() -> None:
    case = Case(batch=1, length=90, segments=False, softplus=False, extras=())
    inputs = case.inputs()
    inputs["u"][:, 10] = float("inf")
    inputs["segment_ids"] = (torch.arange(90) >= 40).long()[None]
    got = results(case, inputs, "cpu")
    for name in ("out", "du", "ddelta", "dB", "dC"):
        assert got[name][:, 40:].isfinite().all(), name
    assert got["final_state"].isfinite().all()
