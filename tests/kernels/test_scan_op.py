"""The scan as a torch operator: derivatives, torch.compile, autocast; and what it refuses."""

from __future__ import annotations

import pytest
import torch
from scan_cases import TENSORS, Case, results

from mambakernels import (
    BackendUnavailable,
    available_backends,
    backends,
    scan_summary,
    selective_scan,
)
from mambakernels.scan import op, reference

SMALL = Case(batch=1, length=5, channels=2, states=2, dtype=torch.float64, segments=True)


def op_arguments(inputs: dict, backend: str, zoh: bool = False) -> tuple:
    given = [inputs.get(name) for name in (*TENSORS, "segment_ids")]
    return (*given, True, zoh, False, backend, True, None)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("discretization", ["euler", "zoh"])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_are_the_slopes(backend: str, discretization: str, reverse: bool) -> None:
    inputs = SMALL.inputs()
    leaves = [inputs[name].requires_grad_() for name in TENSORS]

    def run(*tensors):
        return selective_scan(
            *tensors[:8], initial_state=tensors[8], segment_ids=inputs["segment_ids"],
            delta_softplus=True, discretization=discretization, reverse=reverse,
            return_final_state=True, backend=backend,
        )  # fmt: skip

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("discretization", ["euler", "zoh"])
def test_definition_and_its_written_out_backward_agree_to_any_order(discretization: str) -> None:
    """`reference.definition` is differentiable twice, and zero rates have slopes too."""
    case = Case(1, 3, 2, 3, torch.float64, softplus=False, extras=())
    inputs = case.inputs()
    inputs["A"][0] = torch.tensor([0.0, 1e-9, -3.0])
    leaves = [t.requires_grad_() for t in inputs.values()]

    def run(u, delta, A, B, C):
        return reference.definition(u, delta, A, B, C, zoh=discretization == "zoh")

    assert torch.autograd.gradgradcheck(run, leaves)
    grads = torch.autograd.grad(run(*leaves)[0].sum(), leaves)
    out = selective_scan(*leaves, discretization=discretization, backend="reference")
    for mine, theirs in zip(torch.autograd.grad(out.sum(), leaves), grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_summary_gradients_are_the_slopes(backend: str) -> None:
    inputs = SMALL.inputs()
    names = ("u", "delta", "A", "B", "delta_bias")
    leaves = [inputs[name].requires_grad_() for name in names]

    def run(*tensors):
        return scan_summary(*tensors, delta_softplus=True, discretization="zoh", backend=backend)[
            :2
        ]

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("extras", [(), ("D", "z", "delta_bias", "initial_state")], ids=len)
def test_opcheck(backend: str, extras: tuple[str, ...]) -> None:
    case = Case(length=70, channels=20, states=3, extras=extras, segments=bool(extras))
    inputs = case.inputs()
    for name in TENSORS:
        if name in inputs:
            inputs[name].requires_grad_()
    torch.library.opcheck(op._scan_op, op_arguments(inputs, backend))
    parts = [inputs.get(k) for k in ("u", "delta", "A", "B", "delta_bias", "segment_ids")]
    torch.library.opcheck(op.summary_op, (*parts, True, False, True, backend))


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_break(backend: str | None, dynamic: bool) -> None:
    case = Case(length=20, segments=True)
    inputs = case.inputs()
    leaves = [inputs[name].requires_grad_() for name in TENSORS]

    def run(*tensors):
        out, state = selective_scan(
            *tensors[:8], initial_state=tensors[8], segment_ids=inputs["segment_ids"],
            delta_softplus=True, return_final_state=True, backend=backend,
        )  # fmt: skip
        summary = scan_summary(*tensors[:4], delta_softplus=True, backend=backend)
        return out.square().sum() + state.sum() + summary.state.sum() + summary.decay.sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected = torch.autograd.grad(run(*leaves), leaves)
    for mine, theirs in zip(torch.autograd.grad(compiled(*leaves), leaves), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("registered", [False, True])
def test_second_derivative_is_refused(registered: bool) -> None:
    inputs = Case(length=4, extras=()).inputs()
    leaves = [t.requires_grad_() for t in inputs.values()]
    if registered:
        out = op._scan_op(*op_arguments(inputs, "cpu"))[0]
    else:
        out = selective_scan(*leaves, delta_softplus=True)
    first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first[0].sum(), leaves)


def test_both_ways_of_calling_give_the_same_bits() -> None:
    case = Case(length=70, segments=True)
    inputs = case.inputs()
    short = results(case, inputs, "cpu")
    out, state, _ = op._scan_op(*op_arguments(inputs, "cpu"))
    assert torch.equal(out, short["out"])
    assert torch.equal(state, short["final_state"])


def test_no_gradient_asked_for_means_nothing_saved() -> None:
    inputs = Case(length=70).inputs()
    arguments = op_arguments(inputs, "cpu")
    assert op.scan(*arguments[:-2], False, None)[2].numel() == 0
    assert op.scan(*arguments)[2].numel() > 0


def test_autocast_casts_the_inputs_and_nothing_else() -> None:
    case = Case(length=40)
    inputs = case.inputs()
    leaves = {k: t.requires_grad_() for k, t in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        out, state = selective_scan(**leaves, delta_softplus=True, return_final_state=True)
    assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    low = {k: t.bfloat16() if k in ("u", "delta", "B", "C", "z") else t for k, t in inputs.items()}
    expected = selective_scan(**low, delta_softplus=True)
    assert torch.equal(out, expected)
    gradients = torch.autograd.grad(out.sum(), list(leaves.values()))
    assert all(g.dtype == torch.float32 for g in gradients)
    with torch.autocast("cpu", torch.bfloat16):
        double = {k: t.double() for k, t in inputs.items()}
        assert selective_scan(**double).dtype == torch.float64


def test_low_precision_parameters_are_taken_in_float32() -> None:
    """A whole model in bfloat16 has A and D in it too; the recurrence still runs in float32."""
    inputs = Case(length=20, dtype=torch.bfloat16, extras=("D",)).inputs()
    inputs["A"], inputs["D"] = inputs["A"].bfloat16(), inputs["D"].bfloat16().requires_grad_()
    out, state = selective_scan(**inputs, return_final_state=True)
    assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert torch.autograd.grad(out.sum(), inputs["D"])[0].dtype == torch.bfloat16


REFUSED = {
    "u of two dimensions": ({"u": torch.zeros(3, 4)}, "u is .*batch, length, channels"),
    "integer u": ({"u": torch.zeros(2, 63, 20, dtype=torch.int64)}, "u is torch.int64"),
    "A of another width": ({"A": torch.zeros(19, 5)}, r"A has shape \(19, 5\)"),
    "complex A": ({"A": torch.zeros(20, 5, dtype=torch.complex64)}, "A is torch.complex64"),
    "delta too short": ({"delta": torch.zeros(2, 62, 20)}, r"delta has shape \(2, 62, 20\)"),
    "B by channels": ({"B": torch.zeros(2, 20, 63)}, r"B has shape .*\(batch, length, state\)"),
    "C missing": ({"C": None}, "C is a NoneType"),
    "z": ({"z": torch.zeros(2, 63, 21)}, "z has shape"),
    "D": ({"D": torch.zeros(20, 1)}, r"D has shape \(20, 1\)"),
    "bias": ({"delta_bias": torch.zeros(5)}, "delta_bias has shape"),
    "state": ({"initial_state": torch.zeros(2, 5, 20)}, "initial_state has shape"),
    "segments": ({"segment_ids": torch.zeros(2, 63)}, "segment_ids is torch.float32"),
    "rule": ({"discretization": "bilinear"}, 'use "euler" or "zoh"'),
    "backend": ({"backend": "tpu"}, "use one of cpu, triton, reference"),
    "device": ({"B": torch.zeros(2, 63, 5, device="meta")}, "B is on meta and u on cpu"),
    "summary": ({"summary": 3}, "summary is a int"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_are_named(name: str) -> None:
    changed, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        selective_scan(**{**Case().inputs(), **changed})


def test_a_summary_of_other_sizes_is_refused() -> None:
    inputs = Case(extras=()).inputs()
    small = Case(channels=3, extras=()).inputs()
    summary = scan_summary(*(small[k] for k in ("u", "delta", "A", "B")))
    with pytest.raises(ValueError, match="make it from these inputs"):
        selective_scan(**inputs, summary=summary)


def test_a_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Case(extras=()).inputs()
    monkeypatch.setattr(backends, "_NO_NUMBA", "numba is missing")
    with pytest.raises(BackendUnavailable, match="numba is missing"):
        selective_scan(**inputs, backend="cpu")
    assert available_backends()["cpu"] == "numba is missing"
    with pytest.warns(RuntimeWarning, match="slow reference backend: numba is missing"):
        selective_scan(**inputs)
    monkeypatch.setattr(backends, "_NO_TRITON", "triton is missing")
    with pytest.raises(BackendUnavailable, match="triton is missing"):
        selective_scan(**inputs, backend="triton")
    monkeypatch.setattr(backends, "_NO_TRITON", None)
    monkeypatch.setattr(backends, "_INTERPRET", False)
    monkeypatch.setattr(backends, "_WITH_TRITON", frozenset({"scan"}))
    with pytest.raises(BackendUnavailable, match="CUDA tensors .* TRITON_INTERPRET=1"):
        selective_scan(**inputs, backend="triton")
    monkeypatch.setattr(backends, "_WITH_TRITON", frozenset())
    with pytest.raises(BackendUnavailable, match="has no Triton kernel"):
        selective_scan(**inputs, backend="triton")
    assert set(available_backends()) == set(backends.NAMES)


def test_cpu_tensors_run_on_the_cpu_kernel() -> None:
    assert backends.choose(None, "cpu", "scan") == "cpu"
    assert available_backends()["cpu"] == "available"
