"""What a scan must satisfy whatever computes it; run on the definition and on the CPU kernel."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import Case, results
from torch import Tensor

from mambakernels import scan_summary, selective_scan

BACKENDS = ["reference", "cpu"]
ALONG = ("u", "delta", "B", "C", "z", "segment_ids")  # tensors that have a length


def near(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(
        got, expected, rtol=1e-5, atol=1e-5 * max(1.0, expected.abs().max().item())
    )


def scan(inputs: dict[str, Tensor], case: Case, backend: str, **more) -> tuple[Tensor, Tensor]:
    return selective_scan(
        **inputs, **{**case.options, **more}, return_final_state=True, backend=backend
    )


def cut(inputs: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    return {k: t[:, start:stop] if k in ALONG else t for k, t in inputs.items()}


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    length=st.integers(2, 140),
    where=st.floats(0, 1),
    reverse=st.booleans(),
    discretization=st.sampled_from(["euler", "zoh"]),
)
def test_chunks_with_the_state_handed_over_are_the_whole(
    backend: str, length: int, where: float, reverse: bool, discretization: str
) -> None:
    case = Case(length=length, reverse=reverse, discretization=discretization)
    inputs = case.inputs()
    whole, end = scan(inputs, case, backend)
    at = round(where * length)
    left, right = cut(inputs, 0, at), cut(inputs, at, length)
    first, second = (right, left) if reverse else (left, right)
    one, state = scan(first, case, backend)
    two, state = scan({**second, "initial_state": state}, case, backend)
    near(torch.cat([two, one] if reverse else [one, two], 1), whole)
    near(state, end)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences_are_the_separate_ones(backend: str, reverse: bool) -> None:
    case = Case(batch=1, length=100, reverse=reverse)
    inputs = case.inputs()
    bounds = [0, 1, 30, 66, 100]
    ids = torch.zeros(1, 100, dtype=torch.int32)
    for number, start in enumerate(bounds[:-1]):
        ids[:, start:] = 7 - number
    packed = scan({**inputs, "segment_ids": ids}, case, backend)
    pieces = []
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        piece = cut(inputs, start, stop)
        entering = number == (len(bounds) - 2 if reverse else 0)
        if not entering:  # position 0 continues the initial state, the other segments do not
            piece.pop("initial_state")
        pieces.append(scan(piece, case, backend))
    near(packed[0], torch.cat([out for out, _ in pieces], 1))
    near(packed[1], pieces[0 if reverse else -1][1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_reverse_is_the_flipped_scan_of_flipped_inputs(backend: str) -> None:
    case = Case(length=70, segments=True)
    inputs = case.inputs()
    flipped = {k: t.flip(1) if k in ALONG else t for k, t in inputs.items()}
    out, state = scan(inputs, case, backend)
    back, same = scan(flipped, case, backend, reverse=True)
    assert torch.equal(back.flip(1), out)
    assert torch.equal(same, state)


@pytest.mark.parametrize("backend", BACKENDS)
def test_causal_in_values_and_gradients(backend: str) -> None:
    case = Case(batch=1, length=80)
    inputs = case.inputs()
    before = scan(inputs, case, backend)[0]
    changed = {k: t.clone() for k, t in inputs.items()}
    for name in ("u", "delta", "B", "C", "z"):
        changed[name][:, 50:] += 1
    assert torch.equal(scan(changed, case, backend)[0][:, :50], before[:, :50])
    u = inputs["u"].requires_grad_()
    (gradient,) = torch.autograd.grad(scan(inputs, case, backend)[0][:, 20].sum(), u)
    assert gradient[:, 21:].abs().max() == 0
    assert gradient[:, :21].abs().min() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_summary_says_what_the_scan_does_to_a_state(
    backend: str, segments: bool, reverse: bool
) -> None:
    case = Case(segments=segments, reverse=reverse, extras=("delta_bias", "initial_state"))
    inputs = case.inputs()
    parts = {k: inputs.get(k) for k in ("u", "delta", "A", "B", "delta_bias", "segment_ids")}
    summary = scan_summary(**parts, **case.options, backend=backend)
    out, end = scan(inputs, case, backend)
    near(summary.decay * inputs["initial_state"] + summary.state, end)
    again, same = scan(inputs, case, backend, summary=summary)
    near(again, out)
    near(same, end)
    if segments:
        changed = (inputs["segment_ids"][:, 0] != inputs["segment_ids"][:, -1])[:, None, None]
        assert (summary.decay * changed == 0).all()


def test_summaries_of_two_stretches_join() -> None:
    case = Case(length=90, extras=())
    inputs = case.inputs()
    inputs.pop("C")
    whole = scan_summary(**inputs, **case.options)
    one, two = (scan_summary(**cut(inputs, *p), **case.options) for p in ((0, 31), (31, 90)))
    near(two.decay * one.decay, whole.decay)
    near(two.decay * one.state + two.state, whole.state)


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_every_time(backend: str) -> None:
    case = Case(batch=2, length=130, channels=70, segments=True)
    inputs = case.inputs()
    first, second = results(case, inputs, backend), results(case, inputs, backend)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_order_hold_is_an_exponential_moving_average(backend: str) -> None:
    """zoh, N = 1, A = -1, B = 1: h_t = a h_(t-1) + (1 - a) x_t with a = exp(-delta)."""
    x, delta = torch.randn(1, 50, 3), torch.rand(1, 50, 3)
    ones = torch.ones(1, 50, 1)
    got = selective_scan(
        x, delta, -torch.ones(3, 1), ones, ones, discretization="zoh", backend=backend
    )
    h, expected = torch.zeros(1, 3), []
    for t in range(50):
        a = torch.exp(-delta[:, t])
        h = a * h + (1 - a) * x[:, t]
        expected.append(h)
    torch.testing.assert_close(got, torch.stack(expected, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_large_step_resets(backend: str) -> None:
    """Large delta: the state forgets what was and takes in the present input only."""
    case = Case(batch=1, length=40, softplus=False, extras=(), discretization="zoh")
    inputs = case.inputs()
    inputs["A"] = inputs["A"] - 1
    inputs["delta"][:, 20] = 200.0
    out = scan(inputs, case, backend)[0]
    other = {**inputs, "u": inputs["u"].clone()}
    other["u"][:, :20] = 1000.0
    assert torch.equal(scan(other, case, backend)[0][:, 20:], out[:, 20:])
    fresh = scan(cut(inputs, 20, 40), case, backend)[0]
    near(out[:, 20:], fresh)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("discretization", ["euler", "zoh"])
def test_a_step_of_zero_filters_the_input_out(backend: str, discretization: str) -> None:
    """delta to 0: the state is kept as it is and the input is not seen."""
    case = Case(length=30, softplus=False, discretization=discretization, extras=("initial_state",))
    inputs = case.inputs()
    inputs["delta"][:, 10:20] = 0
    out, end = scan(inputs, case, backend)
    noisy = {**inputs, "u": inputs["u"].clone()}
    noisy["u"][:, 10:20] = 1e6
    again, same = scan(noisy, case, backend)
    assert torch.equal(again, out)
    assert torch.equal(same, end)
    kept = torch.cat([inputs["u"][:, :10], inputs["u"][:, 20:]], 1)
    short = {k: torch.cat([t[:, :10], t[:, 20:]], 1) for k, t in inputs.items() if k in ALONG}
    near(scan({**inputs, **short, "u": kept}, case, backend)[1], end)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_in_gives_nothing_out_and_the_state_back(backend: str) -> None:
    case = Case(length=5)
    inputs = cut(case.inputs(), 0, 0)
    out, state = scan(inputs, case, backend)
    assert out.shape == (2, 0, 20)
    assert torch.equal(state, inputs["initial_state"])
    assert state.data_ptr() != inputs["initial_state"].data_ptr()
