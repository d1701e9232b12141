"""The scan's Triton kernels against the definition: interpreted on the CPU, compiled on a GPU.

Without a GPU, one test runs this file again in a process whose Triton interprets the plain
kernels, at small sizes; the tuned kernels exist on a GPU only.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from op_cases import DEVICE, INTERPRETED, TRITON, memory_full_of_nan, run_interpreted
from scan_cases import Case
from torch import Tensor

from helpers import assert_as_exact
from mambakernels import scan_summary, selective_scan
from mambakernels.scan import reference

pytest.importorskip("triton")
INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state", "segment_ids")
RESULTS = ("out", "final_state", *(f"d{name}" for name in INPUTS[:9]))


def gradient_weights(case: Case) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(case.seed + 1)
    dout = torch.randn(case.batch, case.length, case.channels, generator=generator)
    dfinal = torch.randn(case.batch, case.channels, case.states, generator=generator)
    return dout.to(case.dtype), dfinal


def run(module, case: Case, inputs: dict[str, Tensor], double: bool = False, **more):
    """Everything that a backend computes for a case, by name; on the inputs' device."""

    def ready(t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        return (t.double() if double and t.is_floating_point() else t).to(inputs["u"].device)

    tensors = [ready(inputs.get(name)) for name in INPUTS]
    options = (case.softplus, case.discretization == "zoh", case.reverse)
    dout, dfinal = (ready(t) for t in gradient_weights(case))
    out, final, saved = module.forward(*tensors, *options, **more)
    if not double:
        dfinal = dfinal.to(final.dtype)
    again = None
    if getattr(module, "FILLS_OUTPUTS", False):
        again = out.new_empty(out.shape)
    gradients = module.backward(dout, dfinal, saved, again, *tensors, *options, **more)
    if again is not None:
        assert (
            torch.equal(again, out)
            or (again - out).abs().max() <= 4 * torch.finfo(out.dtype).eps * out.abs().max()
        ), "the backward pass found other outputs"
    named = dict(zip(RESULTS, (out, final, *gradients), strict=True))
    return {name: t for name, t in named.items() if t is not None}


def check(case: Case, tuning) -> None:
    """The tolerance rule for every result, with memory full of NaN beforehand."""
    from mambakernels.scan import triton

    inputs = case.inputs()
    exact = run(reference, case, inputs, double=True)
    base = run(reference, case, inputs)
    with memory_full_of_nan():
        got = run(triton, case, {k: t.to(DEVICE) for k, t in inputs.items()}, tuning=tuning)
    assert got.keys() == exact.keys()
    for name, value in got.items():
        assert value.dtype == base[name].dtype, name
        what = f"{name} of {case} with {tuning}"
        assert_as_exact(value.cpu(), exact[name], base[name], what, dtype=case.dtype)


def small_tuning(tuned: bool = False, **sizes):
    """Sizes that make several chunks, sub-chunks, blocks and rounds of a small problem."""
    from mambakernels.scan.triton_problem import Tuning

    return Tuning(
        **{"chunk": 5, "block": 4, "sub": 2, "programs": 3, "tuned": tuned, "group": 1, **sizes}
    )


def tile(steps: int, wide: int, pair: int):
    from mambakernels.scan.triton_problem import Tile

    return Tile(steps, wide, pair)


LARGEST = {"batch": 2, "length": 11, "channels": 6, "states": 4} if INTERPRETED else {
    "batch": 3, "length": 150, "channels": 140, "states": 20
}  # fmt: skip
drawn_cases = st.builds(
    Case,
    **{name: st.integers(1, most) for name, most in LARGEST.items()},
    dtype=st.sampled_from(
        [torch.float32, torch.float16]
        + ([torch.float64] if INTERPRETED else [torch.bfloat16, torch.bfloat16])
    ),
    softplus=st.booleans(),
    discretization=st.sampled_from(["euler", "euler", "zoh"]),
    reverse=st.booleans(),
    segments=st.booleans(),
    extras=st.sets(st.sampled_from(["D", "z", "delta_bias", "initial_state"])).map(
        lambda names: tuple(sorted(names))
    ),
    seed=st.integers(0, 1000),
)


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreted run")
def test_interpreted() -> None:
    run_interpreted(__file__)


@pytest.mark.parametrize("place", [TRITON])
@settings(max_examples=5, deadline=None, derandomize=True)
@given(case=drawn_cases, chunk=st.sampled_from([3, 8, 64]), block=st.sampled_from([4, 8, 32]))
def test_plain_kernels_agree_with_the_definition(
    place: tuple[str, str], case: Case, chunk: int, block: int
) -> None:
    check(case, small_tuning(chunk=chunk, block=block if INTERPRETED else 32))


EVERYTHING = Case(batch=2, length=13, channels=5, states=3, segments=True, seed=3)


@pytest.mark.parametrize("place", [TRITON])
@pytest.mark.parametrize(
    "case",
    [
        EVERYTHING,
        dataclasses.replace(EVERYTHING, discretization="zoh", reverse=True, seed=4),
        dataclasses.replace(EVERYTHING, length=1, segments=False),
        dataclasses.replace(EVERYTHING, dtype=torch.float16, segments=False, seed=5),
    ],
    ids=["everything", "zoh-reverse", "one-step", "float16"],
)
def test_plain_kernels_with_everything(place: tuple[str, str], case: Case) -> None:
    check(case, small_tuning())


@pytest.mark.parametrize("place", [TRITON])
@pytest.mark.parametrize("tuned", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_a_summary_spares_the_first_pass_and_changes_nothing(
    place: tuple[str, str], tuned: bool
) -> None:
    from mambakernels.scan import triton

    tuning = small_tuning(tuned, chunk=16 if tuned else 5)
    case = dataclasses.replace(EVERYTHING, length=70 if tuned else 13, segments=False)
    inputs = case.inputs(DEVICE)
    decay, state, chunk_states = triton.summary(
        *(inputs.get(k) for k in ("u", "delta", "A", "B", "delta_bias", "segment_ids")),
        True, False, False, tuning=tuning,
    )  # fmt: skip
    handed = decay * inputs["initial_state"] + state
    plain = run(triton, case, inputs, tuning=tuning)
    torch.testing.assert_close(handed, plain["final_state"], rtol=1e-5, atol=1e-5)
    arguments = [inputs.get(k) for k in INPUTS]
    with memory_full_of_nan():
        out, final, saved = triton.forward(
            *arguments, True, False, False, tuning=tuning, chunk_states=chunk_states
        )
        dout, dfinal = (t.to(DEVICE) for t in gradient_weights(case))
        gradients = triton.backward(
            dout, dfinal, saved, None, *arguments, True, False, False, tuning=tuning
        )
    named = dict(zip(RESULTS, (out, final, *gradients), strict=True))
    for name, value in plain.items():
        assert torch.equal(named[name], value), name


@pytest.mark.parametrize("place", [TRITON])
def test_public_function(place: tuple[str, str]) -> None:
    case = Case(batch=1, length=9, channels=3, states=2, seed=8)
    inputs = {k: t.requires_grad_() for k, t in case.inputs(DEVICE).items()}
    out, final = selective_scan(
        **inputs, delta_softplus=True, return_final_state=True, backend="triton"
    )
    got = torch.autograd.grad(out.sum() + final.sum(), list(inputs.values()))
    out, final = selective_scan(
        **inputs, delta_softplus=True, return_final_state=True, backend="reference"
    )
    expected = torch.autograd.grad(out.sum() + final.sum(), list(inputs.values()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# ---- on a GPU only: the tuned kernels, and sizes that only a GPU can take

# Every case compiles its own kernels, so a failing one is not shrunk.
COMPILED = settings(
    max_examples=6, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate)
)
tuned_sizes = st.sampled_from(
    [
        {"walk": (16, 1, 2), "gradient": (8, 2, 2), "whole": False},
        {"walk": (16, 1, 2), "gradient": (8, 2, 2), "whole": True},
        {"walk": (8, 2, 1), "gradient": (8, 1, 1), "whole": False, "group": 2},
    ]
)


@pytest.mark.gpu
@COMPILED
@given(
    case=drawn_cases,
    states=st.sampled_from([1, 4, 5, 16]),  # unrolled in the kernels: many take long to compile
    chunk=st.sampled_from([16, 48, 256]),
    sizes=tuned_sizes,
)
def test_tuned_kernels_agree_with_the_definition(
    case: Case, states: int, chunk: int, sizes: dict
) -> None:
    sizes = {**sizes, "walk": tile(*sizes["walk"]), "gradient": tile(*sizes["gradient"])}
    case = dataclasses.replace(case, discretization="euler", states=states)
    check(case, small_tuning(True, chunk=chunk, **sizes))


def model_like(batch: int, length: int, channels: int, states: int, dtype: torch.dtype):
    """Inputs as views of projections, drawn on the GPU; and the derivative by the output."""
    generator = torch.Generator("cuda").manual_seed(length + channels)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype, generator=generator)

    low = normal(batch, length, 8 + 2 * states)
    inputs = {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels).mul_(0.5),
        "A": -torch.arange(1.0, states + 1, device="cuda").repeat(channels, 1),
        "B": low[..., 8 : 8 + states],
        "C": low[..., 8 + states :],
        "D": torch.ones(channels, device="cuda"),
        "z": normal(batch, length, 2 * channels)[..., channels:],
        "delta_bias": torch.full((channels,), -3.0, device="cuda"),
    }
    return inputs, normal(batch, length, channels)


def gradients_of(inputs: dict[str, Tensor], dout: Tensor, **options) -> dict[str, Tensor]:
    leaves = {k: t.detach().requires_grad_() for k, t in inputs.items()}
    out, final = selective_scan(**leaves, delta_softplus=True, return_final_state=True, **options)
    weight = torch.linspace(-1, 1, final.numel(), device="cuda", dtype=final.dtype)
    found = torch.autograd.grad(
        [out, final], list(leaves.values()), [dout, weight.view(final.shape)]
    )
    named = {f"d{name}": g for name, g in zip(leaves, found, strict=True)}
    return {"out": out.detach(), "final_state": final.detach(), **named}


@pytest.mark.gpu
@pytest.mark.xdist_group("memory")
@pytest.mark.parametrize(
    ("batch", "length", "channels"),
    [(1, 1 << 20, 256), (1, 131_072, 512), (8, 2048, 2048), (64, 2048, 512), (1, 2048, 1536),
     (1, 100_003, 90)],
    ids=str,
)  # fmt: skip
def test_large_sizes_against_float64(batch: int, length: int, channels: int) -> None:
    """In float64 by the plain kernels, which the tests above hold to the definition."""
    inputs, dout = model_like(batch, length, channels, 16, torch.bfloat16)
    got = gradients_of(inputs, dout)
    single = gradients_of({k: t.float() for k, t in inputs.items()}, dout.float())
    exact = gradients_of({k: t.double() for k, t in inputs.items()}, dout.double())
    for name, value in got.items():
        base = single[name].to(value.dtype)  # exact states, rounded like the result
        assert_as_exact(value, exact[name], base, name, dtype=torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 40_000, 192), (4, 1000, 512)], ids=str)
def test_twenty_runs_same_bits(shape: tuple[int, int, int]) -> None:
    inputs, dout = model_like(*shape, 16, torch.bfloat16)
    first = gradients_of(inputs, dout)
    for _ in range(19):
        for name, value in gradients_of(inputs, dout).items():
            assert torch.equal(value, first[name]), name


@pytest.mark.gpu
@pytest.mark.xdist_group("memory")
def test_past_the_32_bit_limits() -> None:
    """2^31 and 2^32 elements: the end of the sequence is as when run apart from the state there."""
    channels = 4096
    length = 2**32 // channels + 4096
    inputs, dout = model_like(1, length, channels, 16, torch.bfloat16)
    along = ("u", "delta", "B", "C", "z")
    with torch.no_grad():
        whole, end = selective_scan(**inputs, delta_softplus=True, return_final_state=True)
        state, at = None, 0
        for stop in (2**31 // channels - 5, 2**32 // channels - 3, length):
            part = {k: t[:, at:stop] if k in along else t for k, t in inputs.items()}
            out, state = selective_scan(
                **part, delta_softplus=True, initial_state=state, return_final_state=True
            )
            for first in (0, out.shape[1] - 100):  # both edges of the part
                torch.testing.assert_close(
                    out[:, first : first + 100], whole[:, at + first : at + first + 100],
                    rtol=2e-2, atol=2e-2,
                )  # fmt: skip
            at = stop
        torch.testing.assert_close(state, end, rtol=1e-4, atol=1e-4)
        del whole, out
    got = gradients_of(inputs, dout)
    before = length - 5000
    with torch.no_grad():
        _, state = selective_scan(
            **{k: t[:, :before] if k in along else t for k, t in inputs.items()},
            delta_softplus=True, return_final_state=True,
        )  # fmt: skip
    tail = {k: t[:, before:] if k in along else t for k, t in inputs.items()}
    leaves = {k: t.detach().requires_grad_() for k, t in tail.items()}
    out, final = selective_scan(
        **leaves, delta_softplus=True, initial_state=state, return_final_state=True
    )
    weight = torch.linspace(-1, 1, final.numel(), device="cuda").view(final.shape)
    expected = torch.autograd.grad(
        [out, final], [leaves[k] for k in along], [dout[:, before:], weight]
    )
    for name, value in zip(along, expected, strict=True):
        torch.testing.assert_close(got[f"d{name}"][:, before:], value, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
def test_summary_of_a_long_stretch() -> None:
    inputs, _ = model_like(1, 50_001, 96, 16, torch.bfloat16)
    stretch = {k: inputs[k] for k in ("u", "delta", "A", "B", "delta_bias")}
    start = torch.rand(1, 96, 16, device="cuda")
    s = scan_summary(**stretch, delta_softplus=True)
    with torch.no_grad():
        _, end = selective_scan(
            **inputs, delta_softplus=True, initial_state=start, return_final_state=True
        )
        _, again = selective_scan(
            **inputs, delta_softplus=True, initial_state=start, return_final_state=True, summary=s
        )
    torch.testing.assert_close(s.decay * start + s.state, end, rtol=1e-4, atol=1e-5)
    assert torch.equal(end, again)


@pytest.mark.gpu
def test_rows_that_are_not_aligned() -> None:
    """Views that start at odd elements of rows of odd length."""
    inputs, dout = model_like(2, 300, 70, 7, torch.bfloat16)
    shifted = dict(inputs)
    for name in ("u", "delta", "B", "C", "z"):
        wide = torch.zeros(*inputs[name].shape[:2], inputs[name].shape[2] + 3, device="cuda")
        shifted[name] = wide.to(torch.bfloat16)[..., 1:-2].copy_(inputs[name])
    plain, odd = gradients_of(inputs, dout), gradients_of(shifted, dout)
    for name, value in plain.items():
        torch.testing.assert_close(odd[name], value, rtol=0, atol=0, msg=name)
