"""The S4D mixer by chunks: the FFT's outputs, states and gradients, and never the future."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import assert_as_exact, assert_close
from mambacore.mixers import S4DMixer, chunked
from mambacore.mixers.diagonal import Diagonal
from mambacore.mixers.s4d import S4DState
from mambacore.recording import aside


def _mixer(channels: int, path: str, **options: float) -> S4DMixer:
    torch.manual_seed(0)
    mixer = S4DMixer(channels, **options)  # pyright: ignore[reportArgumentType]
    mixer.convolution = path  # pyright: ignore[reportAttributeAccessIssue]
    return mixer


def _outcome(mixer: S4DMixer, x: Tensor, state: S4DState | None = None) -> dict[str, Tensor]:
    """Outputs, final state and every gradient of a loss that weighs both at random."""
    leaves = {"x": x, **dict(mixer.named_parameters())}
    if state is not None:
        leaves["state"] = state.ssm
    y, after = mixer(x, state)
    ssm = torch.view_as_real(after.ssm)
    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in (y, ssm)
    ]
    loss = (y * weights[0]).sum() + (ssm * weights[1]).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    found = {"y": y, "ssm": ssm, **dict(zip(leaves, grads, strict=True))}
    return {
        key: (torch.view_as_real(t) if t.is_complex() else t).detach() for key, t in found.items()
    }


def _assert_as_exact(
    got: dict[str, Tensor], exact: dict[str, Tensor], reference: dict[str, Tensor]
) -> None:
    for name, value in got.items():
        if name in ("y", "ssm", "x"):
            assert_as_exact(value, exact[name], reference[name], name)
        # A parameter's gradient is a few sums: whose rounding is smaller is chance.
        assert_close(value, exact[name], 2e-5, name)


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(2, 90),
    width=st.integers(1, 9),
    group=st.integers(2, 5),
    rows=st.integers(1, 3),
    carries=st.booleans(),
)
def test_chunks_are_the_fft(length: int, width: int, group: int, rows: int, carries: bool) -> None:
    x = torch.randn(rows, length, 4, dtype=torch.float64, requires_grad=True)
    state = None
    if carries:
        ssm = torch.randn(rows, 4, 3, dtype=torch.complex128, requires_grad=True)
        state = S4DState(ssm, torch.zeros(rows, dtype=torch.int64))
    expected = _outcome(_mixer(4, "fft", d_state=6, dt_max=0.5).double(), x, state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "_WIDTH", width)
        patch.setattr(chunked, "_GROUP", group)
        got = _outcome(_mixer(4, "chunks", d_state=6, dt_max=0.5).double(), x, state)
    for name, value in got.items():
        assert_close(value, expected[name], 1e-11, name)


def test_gradients_by_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "_WIDTH", 3)
    monkeypatch.setattr(chunked, "_GROUP", 2)
    mixer = _mixer(2, "chunks", d_state=4, dt_max=0.5).double()
    parameters = (mixer.log_dt, mixer.log_A_real, mixer.A_imag, mixer.C, mixer.D)
    u = torch.randn(2, 1, 14, dtype=torch.float64, requires_grad=True)
    carried = torch.randn(2, 1, 2, dtype=torch.complex128, requires_grad=True)

    def run(u: Tensor, carried: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        return chunked.convolve_chunks(Diagonal.discretise(*values[:4]), values[4], u, carried)

    assert torch.autograd.gradcheck(run, (u, carried, *parameters))


@pytest.mark.parametrize("decay", [0.5, 0.01])
def test_as_exact_as_the_fft_over_long_sequences(decay: float) -> None:
    """Steps of several radians that hardly decay, over three levels of groups."""
    found = []
    for path, dtype in (("fft", torch.float64), ("fft", torch.float32), ("chunks", torch.float32)):
        mixer = _mixer(2, path, dt_min=0.01, dt_max=0.1)
        with torch.no_grad():
            mixer.log_A_real.fill_(math.log(decay))
        mixer = mixer.to(dtype)
        x = torch.randn(1, 70_001, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
        found.append(_outcome(mixer, x.requires_grad_()))
    exact, reference, got = found
    _assert_as_exact(got, exact, reference)


def test_nothing_of_the_future_reaches_the_past() -> None:
    mixer = _mixer(2, "chunks", d_state=4)
    x = torch.randn(1, 5_000, 2)
    changed = x.clone()
    changed[:, 4_000:] = 1e6
    with torch.no_grad():
        assert torch.equal(mixer(x)[0][:, :4_000], mixer(changed)[0][:, :4_000])


def test_parts_and_steps_are_the_whole() -> None:
    mixer = _mixer(3, "chunks", d_state=8, dt_max=0.5)
    x = torch.randn(2, 700, 3)
    with torch.no_grad():
        whole, after = mixer(x)
        state, outputs = None, []
        for part in x.split([300, 129, 128, *[1] * 20, 123], dim=1):
            y, state = mixer(part, state)
            outputs.append(y)
    assert state is not None
    assert_close(torch.cat(outputs, dim=1), whole, 2e-5)
    assert_close(torch.view_as_real(state.ssm), torch.view_as_real(after.ssm), 1e-4)


def test_autocast_keeps_the_arithmetic_wide() -> None:
    """Backward under autocast as well; the layer's gradients lie in memory as its input does."""
    x = torch.randn(2, 300, 8)
    found = []
    for path in ("fft", "chunks"):
        mixer = _mixer(8, path)
        half = x.bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y, state = mixer(half)
            y.float().square().sum().backward()
        assert state.ssm.dtype == torch.complex64
        assert half.grad is not None
        found.append([y, half.grad, *(p.grad for p in mixer.parameters())])
    for got, expected in zip(*found, strict=True):
        assert_close(got, expected, 2e-2)


def test_compiled_without_a_graph_break() -> None:
    mixer = _mixer(4, "chunks", d_state=6)
    x = torch.randn(2, 300, 4, requires_grad=True)
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    outcomes = []
    for run in (compiled, mixer):
        y, _ = run(x)
        outcomes.append([y, *torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])])
    for got, expected in zip(*outcomes, strict=True):
        assert_close(got, expected, 1e-5)


def test_the_path_is_chosen_by_size_on_a_cpu() -> None:
    for length, path in ((9, "fft"), (1 << 15, "chunks")):
        x = torch.randn(1, length, 2)
        with torch.no_grad():
            chosen, wanted = (_mixer(2, p, d_state=4)(x)[0] for p in ("auto", path))
        assert torch.equal(chosen, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 4_099, 64), (1, 40_000, 3)])
def test_a_gpu_is_as_exact(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape, device="cuda", requires_grad=True)
    exact = _outcome(_mixer(shape[-1], "fft").cuda().double(), x.detach().double().requires_grad_())
    reference = _outcome(_mixer(shape[-1], "fft").cuda(), x)
    got = _outcome(_mixer(shape[-1], "auto").cuda(), x)
    _assert_as_exact(got, exact, reference)


@pytest.mark.gpu
def test_recorded_in_a_cuda_graph() -> None:
    mixer = _mixer(64, "auto").cuda()
    first, second = (torch.randn(2, 4_099, 64, device="cuda") for _ in range(2))
    x = first.clone().requires_grad_()

    def step() -> list[Tensor]:
        y, state = mixer(x)
        loss = y.square().mean() + torch.view_as_real(state.ssm).square().mean()
        return [y, *torch.autograd.grad(loss, [x, *mixer.parameters()])]

    aside(step, 3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    with torch.no_grad():
        x.copy_(second)
    graph.replay()
    replayed = [t.detach().clone() for t in recorded]
    for got, expected in zip(replayed, step(), strict=True):
        assert_close(got, expected, 1e-6)
