"""The RMS norm with residual: parity, the stream it returns, derivatives, torch.compile."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DTYPES, EXAMPLES, INTERPRETED, PLACES, check_parity, results, run_interpreted
from torch import Tensor

from mambakernels import rms_norm
from mambakernels.norm import op

BACKENDS = ["reference", "cpu"]
HALF = torch.float16 if INTERPRETED else torch.bfloat16


def make(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    residual: torch.dtype | None = torch.float32,
    seed: int = 0,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = shape or (2, 11, 37)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    tensors = {"x": normal(*shape).to(dtype), "weight": 1 + 0.1 * normal(shape[-1])}
    if dtype == torch.float64:
        tensors["weight"] = tensors["weight"].double()
    if residual is not None:
        tensors["residual"] = 2 * normal(*shape).to(residual)
    return tensors


def run_with(residual_dtype: torch.dtype | None = None):
    def run(tensors: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
        double = tensors["x"].dtype == torch.float64
        y, stream = rms_norm(
            **tensors,
            residual_dtype=torch.float64 if double else residual_dtype,
            return_residual=True,
            backend=backend,
        )
        return {"y": y, "stream": stream}

    return run


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.integers(0, 7), max_size=2),
    channels=st.one_of(st.integers(1, 40), st.sampled_from([127, 130])),
    dtypes=st.one_of(
        st.sampled_from([(dtype, None, None) for dtype in DTYPES]),
        st.sampled_from([(dtype, dtype, None) for dtype in DTYPES]),
        st.sampled_from([(HALF, torch.float32, None), (HALF, None, torch.float32)]),
        st.sampled_from([(torch.float32, HALF, None), (torch.float32, torch.float32, HALF)]),
    ),
    seed=st.integers(0, 99),
)
def test_drawn_cases_agree_with_the_definition(place, rows, channels, dtypes, seed) -> None:
    dtype, residual, residual_dtype = dtypes
    if residual_dtype == HALF:
        # Of two values, the reference's rounding of the gradient may cancel that of the stream:
        # then its error says nothing about the stream's.
        channels = max(channels, 4)
    tensors = make(*rows, channels, dtype=dtype, residual=residual, seed=seed)
    check_parity(run_with(residual_dtype), tensors, place)


@pytest.mark.parametrize("place", PLACES)
def test_several_parts_of_work(place) -> None:
    shape = (2, 70, 33) if INTERPRETED else (2, 2050, 300)
    check_parity(run_with(), make(*shape, dtype=HALF), place)


@pytest.mark.parametrize("place", PLACES)
def test_same_inputs_same_bits(place) -> None:
    backend, device = place
    shape = (60, 33) if INTERPRETED else (4000, 300)
    tensors = {k: t.to(device) for k, t in make(*shape).items()}
    first = results(run_with(), tensors, backend)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for name, value in results(run_with(), tensors, backend).items():
                assert torch.equal(value, first[name]), (count, name)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(INTERPRETED, reason="already interpreted")
def test_interpreted_kernels() -> None:
    run_interpreted(__file__)


@pytest.mark.gpu
@pytest.mark.xdist_group("memory")
def test_past_two_to_the_32_elements_on_the_gpu() -> None:
    """The last rows of 2^32 elements equal those computed alone."""
    x = torch.randn((1 << 23) + 5, 513, dtype=torch.bfloat16, device="cuda").requires_grad_()
    weight = torch.rand(513, device="cuda")
    y = rms_norm(x, weight)
    tail = x[-100:].detach().requires_grad_()
    alone = rms_norm(tail, weight)
    assert torch.equal(y[-100:], alone)
    dy = torch.randn_like(y)
    (whole,) = torch.autograd.grad(y, x, dy)
    (part,) = torch.autograd.grad(alone, tail, dy[-100:])
    assert torch.equal(whole[-100:], part)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("residual_dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_stream_is_the_sum_and_y_its_norm(backend, residual_dtype, dtype) -> None:
    """y is the norm of the stream as it is returned, rounding included: the next layer's view."""
    tensors = make(dtype=dtype)
    y, stream = rms_norm(
        **tensors, residual_dtype=residual_dtype, return_residual=True, backend=backend
    )
    total = tensors["x"].float() + tensors["residual"]
    assert torch.equal(stream, total.to(residual_dtype or torch.float32))
    assert y.dtype == dtype
    again = rms_norm(stream, tensors["weight"], backend=backend)
    torch.testing.assert_close(y, again.to(dtype), rtol=1e-2, atol=1e-2)
    if dtype == torch.float32 and stream.dtype == torch.float32:
        assert torch.equal(y, again)


def test_without_residual_the_stream_is_x() -> None:
    tensors = make(residual=None)
    x = tensors["x"].requires_grad_()
    y, stream = rms_norm(x, tensors["weight"], return_residual=True)
    assert stream is x
    torch.testing.assert_close(y, torch.nn.functional.rms_norm(x, (37,), tensors["weight"], 1e-5))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_residual", [False, True])
def test_gradients_are_the_slopes(backend: str, with_residual: bool) -> None:
    tensors = make(2, 3, 5, dtype=torch.float64, residual=torch.float64)
    leaves = [t.requires_grad_() for t in tensors.values()][: 3 if with_residual else 2]

    def run(x, weight, residual=None):
        return rms_norm(x, weight, residual=residual, return_residual=True, backend=backend)

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("used", ["y", "stream"])
def test_one_output_alone_may_be_used(used: str) -> None:
    def run(tensors: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
        return {used: run_with()(tensors, backend)[used]}

    tensors = make()
    expected = results(run, tensors, "reference")
    for name, value in results(run, tensors, "cpu").items():
        torch.testing.assert_close(value, expected.get(name, torch.zeros_like(value)))


@pytest.mark.parametrize("residual", [None, torch.float32])
def test_opcheck(residual) -> None:
    tensors = make(dtype=torch.bfloat16, residual=residual)
    given = [tensors["x"], tensors["weight"], tensors.get("residual")]
    given = [t if t is None else t.requires_grad_() for t in given]
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(op._forward_op, (*given, 1e-5, dtype, "cpu"))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_break(dynamic: bool) -> None:
    tensors = make(dtype=torch.bfloat16)
    compiled = torch.compile(run_with(), fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected = results(run_with(), tensors, "cpu")
    for name, value in results(compiled, tensors, "cpu").items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("registered", [False, True])
def test_a_second_derivative_is_refused(registered: bool) -> None:
    tensors = make()
    x = tensors["x"].requires_grad_()
    if registered:
        y = op._forward_op(x, tensors["weight"], None, 1e-5, torch.float32, "cpu")[0]
    else:
        y = rms_norm(**tensors, backend="cpu")
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.sum(), x)


def test_a_slice_of_a_wider_tensor() -> None:
    wide = torch.randn(2, 9, 80)
    x = wide[..., 20:57]
    weight = torch.rand(37)
    assert torch.equal(rms_norm(x, weight), rms_norm(x.contiguous(), weight))


def test_huge_and_tiny_values() -> None:
    x = torch.tensor([[1e18, -1e18, 0.0], [1e-30, 1e-30, 1e-30], [0.0, 0.0, 0.0]])
    expected = rms_norm(x.double(), torch.ones(3).double(), backend="reference")
    torch.testing.assert_close(rms_norm(x, torch.ones(3)).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.tensor(1.0)}, ValueError, "x has no dimension"),
        ({"x": torch.zeros(2, 11, 37, dtype=torch.int32)}, TypeError, "x has dtype"),
        ({"weight": torch.ones(36)}, ValueError, "weight has shape"),
        ({"residual": torch.ones(11, 37)}, ValueError, "residual has shape"),
        ({"residual": torch.ones(2, 11, 37, device="meta")}, ValueError, "residual is on meta"),
        ({"eps": -1.0}, ValueError, "eps=-1.0"),
        ({"residual_dtype": torch.int64}, TypeError, "residual_dtype=torch.int64"),
        ({"backend": "cuda"}, ValueError, "backend='cuda'"),
    ],
)
def test_refusals_name_the_argument(change: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        rms_norm(**{**make(), **change})
