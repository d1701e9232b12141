"""The gradient of the initial state alone is the one that the whole backward pass finds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DEVICE, INTERPRETED, TRITON, memory_full_of_nan, run_interpreted
from scan_cases import Case

from helpers import assert_close
from mambakernels.scan import reference

pytest.importorskip("triton")
from mambakernels.scan import triton as backend
from mambakernels.scan.triton_adjoint import adjoint
from mambakernels.scan.triton_problem import Tuning

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state", "segment_ids")


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreted run")
def test_interpreted() -> None:
    run_interpreted(__file__)


@pytest.mark.parametrize("place", [TRITON])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    chunk=st.sampled_from([4, 8]),
    length=st.integers(1, 30),
    segments=st.booleans(),
    reverse=st.booleans(),
    gated=st.booleans(),
)
def test_small(
    place: tuple[str, str], chunk: int, length: int, segments: bool, reverse: bool, gated: bool
) -> None:
    extras = ("z", "delta_bias", "initial_state") if gated else ("initial_state",)
    check(
        Case(length=length, channels=6, states=3, segments=segments, reverse=reverse,
             softplus=gated, extras=extras),
        Tuning(chunk=chunk, tuned=False, block=8),
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("length", [100, 5000])
def test_tuned(length: int, segments: bool) -> None:
    check(Case(length=length, channels=256, states=16, segments=segments), None)


def check(case: Case, tuning: Tuning | None) -> None:
    inputs = case.inputs(DEVICE)
    tensors = [inputs.get(name) for name in NAMES]
    _, delta, A, _, C, _, z, bias, _, ids = tensors
    options = (case.softplus, False, case.reverse)
    generator = torch.Generator().manual_seed(9)
    dout = torch.randn(case.batch, case.length, case.channels, generator=generator).to(DEVICE)
    with memory_full_of_nan():
        out, _, saved = backend.forward(*tensors, *options, tuning=tuning)
        got = adjoint(dout, saved, delta, A, C, z, bias, ids, case.softplus, case.reverse, tuning)
    wide = [None if t is None else t.double() if t.is_floating_point() else t for t in tensors]
    exact = reference.backward(
        dout.double(), None, out.new_empty(0), None, *wide, *options
    )[8]  # fmt: skip
    assert exact is not None
    assert_close(got, exact, 1e-5)
