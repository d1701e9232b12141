"""The causal depthwise convolution: parity, states, segments, derivatives, torch.compile."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import DTYPES, EXAMPLES, INTERPRETED, PLACES, check_parity, results, run_interpreted
from torch import Tensor

from mambakernels import BackendUnavailable, causal_conv1d
from mambakernels.conv import op

BACKENDS = ["reference", "cpu"]


def make(
    batch: int = 2, length: int = 37, channels: int = 19, width: int = 4, *,
    dtype: torch.dtype = torch.float32, weight_dtype: torch.dtype | None = None,
    bias: bool = True, initial: bool = True, segments: bool = False, seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weight_dtype = weight_dtype or (torch.float64 if dtype == torch.float64 else torch.float32)
    # x as the model has it: one half of a wider projection
    tensors = {
        "x": normal(batch, length, 2 * channels).to(dtype).chunk(2, -1)[0],
        "weight": normal(channels, width).to(weight_dtype),
    }
    if bias:
        tensors["bias"] = normal(channels).to(weight_dtype)
    if initial:
        tensors["initial_state"] = normal(batch, width - 1, channels).to(dtype)
    if segments:
        changes = torch.rand(batch, length, generator=generator) < 0.15
        tensors["segment_ids"] = changes.cumsum(1) % 3
    return tensors


def run_with(activation: str | None):
    def run(tensors: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
        out, final = causal_conv1d(
            **tensors, activation=activation, return_final_state=True, backend=backend
        )
        return {"out": out, "final": final}

    return run


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    length=st.one_of(st.integers(0, 6), st.sampled_from([31, 63, 64, 65, 130])),
    channels=st.one_of(st.integers(1, 40), st.sampled_from([127, 130])),
    width=st.integers(1, 6),
    dtype=st.sampled_from(DTYPES),
    options=st.fixed_dictionaries(
        {"bias": st.booleans(), "initial": st.booleans(), "segments": st.booleans()}
    ),
    activation=st.sampled_from([None, "silu"]),
    seed=st.integers(0, 99),
)
def test_drawn_cases_agree_with_the_definition(
    place, batch, length, channels, width, dtype, options, activation, seed
) -> None:
    if INTERPRETED:  # slow
        batch, length, channels = min(batch, 2), min(length, 33), min(channels, 20)
    tensors = make(batch, length, channels, width, dtype=dtype, seed=seed, **options)
    check_parity(run_with(activation), tensors, place)


@pytest.mark.parametrize("place", PLACES)
def test_several_parts_of_work_and_weights_in_half_precision(place) -> None:
    dtype = torch.float16 if INTERPRETED else torch.bfloat16
    shape = (1, 40, 17, 4) if INTERPRETED else (1, 3000, 300, 4)
    tensors = make(*shape, dtype=dtype, weight_dtype=dtype, segments=True)
    check_parity(run_with("silu"), tensors, place)


@pytest.mark.parametrize("place", PLACES)
def test_same_inputs_same_bits(place) -> None:
    backend, device = place
    shape = (1, 20, 18, 4) if INTERPRETED else (2, 2500, 200, 4)
    tensors = {k: t.to(device) for k, t in make(*shape, segments=True).items()}
    first = results(run_with("silu"), tensors, backend)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3)[INTERPRETED:]:
            torch.set_num_threads(count)
            for name, value in results(run_with("silu"), tensors, backend).items():
                assert torch.equal(value, first[name]), (count, name)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(INTERPRETED, reason="already interpreted")
def test_interpreted_kernels() -> None:
    run_interpreted(__file__)


@pytest.mark.gpu
@pytest.mark.xdist_group("memory")
def test_past_two_to_the_32_elements_on_the_gpu() -> None:
    """The last rows of 2^32 elements equal those computed alone, with the state handed over.

    Gradients to one rounding: the compiler fuses multiplications and additions of the rows that
    it unrolls differently, and alone a row stands elsewhere among them.
    """
    length, channels = (1 << 23) + 5, 513
    x = torch.randn(1, length, channels, dtype=torch.bfloat16, device="cuda").requires_grad_()
    weight = torch.randn(channels, 4, device="cuda")
    out = causal_conv1d(x, weight, activation="silu")
    state = x[:, -103:-100].detach()
    tail = x[:, -100:].detach().requires_grad_()
    alone = causal_conv1d(tail, weight, activation="silu", initial_state=state)
    assert torch.equal(out[:, -100:], alone)
    dout = torch.randn_like(out)
    (whole,) = torch.autograd.grad(out, x, dout)
    (part,) = torch.autograd.grad(alone, tail, dout[:, -100:])
    torch.testing.assert_close(whole[:, -100:], part, rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    length=st.integers(0, 70), width=st.integers(1, 6), cuts=st.lists(st.floats(0, 1), max_size=4)
)
def test_chunks_with_the_state_handed_over_are_the_whole(backend, length, width, cuts) -> None:
    """Also where a chunk is shorter than the filter, and where segments change at a cut."""
    tensors = make(length=length, width=width, segments=True, dtype=torch.float64)
    state = tensors.pop("initial_state")
    whole, final = causal_conv1d(
        **tensors, initial_state=state, return_final_state=True, backend=backend
    )
    bounds = sorted({0, length, *(round(c * length) for c in cuts)})
    ids = tensors.pop("segment_ids")
    x = tensors.pop("x")
    pieces = []
    for start, stop in itertools.pairwise(bounds):
        if start > 0:  # what a module does that keeps the last segment's id
            kept = ids[:, start] == ids[:, start - 1]
            state = torch.where(kept[:, None, None], state, 0)
        out, state = causal_conv1d(
            x[:, start:stop], **tensors, initial_state=state, return_final_state=True,
            segment_ids=ids[:, start:stop], backend=backend,
        )  # fmt: skip
        pieces.append(out)
    if pieces:
        torch.testing.assert_close(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_sequences_are_the_separate_ones(backend: str) -> None:
    bounds = [0, 1, 3, 4, 20, 22, 37]
    tensors = make(batch=1, initial=False)
    ids = torch.zeros(1, 37, dtype=torch.int32)
    for number, start in enumerate(bounds[:-1]):
        ids[:, start:] = number % 2  # an id may come back: only the change counts
    packed, final = causal_conv1d(
        **tensors, segment_ids=ids, return_final_state=True, backend=backend
    )
    x = tensors.pop("x")
    for start, stop in itertools.pairwise(bounds):
        alone, state = causal_conv1d(
            x[:, start:stop], **tensors, return_final_state=True, backend=backend
        )
        torch.testing.assert_close(packed[:, start:stop], alone)
    torch.testing.assert_close(final, state)


@pytest.mark.parametrize("backend", BACKENDS)
def test_causal(backend: str) -> None:
    tensors = make()
    out = causal_conv1d(**tensors, backend=backend)
    changed = {**tensors, "x": tensors["x"].clone()}
    changed["x"][:, 20:] = float("nan")
    assert torch.equal(causal_conv1d(**changed, backend=backend)[:, :20], out[:, :20])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_of_another_segment_leaks(backend: str) -> None:
    """Not even a NaN; the initial state belongs to position 0's segment."""
    tensors = make(batch=1, length=6, width=4)
    tensors["initial_state"].fill_(float("nan"))
    tensors["x"] = torch.randn(1, 6, 19)
    tensors["x"][:, 0] = float("nan")
    tensors["segment_ids"] = torch.tensor([[0, 1, 1, 1, 1, 1]])
    out, final = causal_conv1d(
        **tensors, activation="silu", return_final_state=True, backend=backend
    )
    assert out[:, 0].isnan().all()
    assert out[:, 1:].isfinite().all()
    assert final.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [0, 2, 7])
def test_gradients_are_the_slopes(backend: str, length: int) -> None:
    tensors = make(length=length, channels=3, dtype=torch.float64, segments=True)
    ids = tensors.pop("segment_ids")
    leaves = [t.detach().clone().requires_grad_() for t in tensors.values()]

    def run(x, weight, bias, initial):
        return causal_conv1d(
            x, weight, bias, activation="silu", initial_state=initial, segment_ids=ids,
            return_final_state=True, backend=backend,
        )  # fmt: skip

    assert torch.autograd.gradcheck(run, leaves)


def test_the_definition_is_torchs_convolution() -> None:
    tensors = make(initial=False, dtype=torch.float64)
    x, weight, bias = tensors["x"], tensors["weight"], tensors["bias"]
    padded = torch.nn.functional.pad(x.transpose(1, 2), (3, 0))
    expected = torch.nn.functional.conv1d(padded, weight[:, None], bias, groups=19).transpose(1, 2)
    torch.testing.assert_close(causal_conv1d(**tensors, backend="reference"), expected)


@pytest.mark.parametrize("full", [False, True])
def test_opcheck(full: bool) -> None:
    tensors = make(bias=full, initial=full, segments=full)
    names = ("x", "weight", "bias", "initial_state", "segment_ids")
    given = [tensors.get(name) for name in names]
    given = [t.requires_grad_() if t is not None and t.is_floating_point() else t for t in given]
    torch.library.opcheck(op._forward_op, (*given, True, "cpu"))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_break(dynamic: bool) -> None:
    tensors = make(segments=True)
    compiled = torch.compile(run_with("silu"), fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected = results(run_with("silu"), tensors, "cpu")
    for name, value in results(compiled, tensors, "cpu").items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("registered", [False, True])
def test_a_second_derivative_is_refused(registered: bool) -> None:
    tensors = make(initial=False)
    x = tensors["x"].detach().requires_grad_()
    if registered:
        out, _ = op._forward_op(x, tensors["weight"], tensors["bias"], None, None, True, "cpu")
    else:
        out = causal_conv1d(x, tensors["weight"], activation="silu", backend="cpu")
    (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.sum(), x)


def test_autocast_casts_inputs_and_leaves_weights() -> None:
    tensors = make(initial=True)
    with torch.autocast("cpu", torch.bfloat16):
        out, final = causal_conv1d(**tensors, return_final_state=True)
    cast = {k: t.bfloat16() if k in ("x", "initial_state") else t for k, t in tensors.items()}
    expected, state = causal_conv1d(**cast, return_final_state=True)
    assert out.dtype == final.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    assert torch.equal(final, state)


def test_the_final_state_does_not_keep_the_input_alive() -> None:
    _, final = causal_conv1d(**make(length=500), return_final_state=True)
    assert final.untyped_storage().nbytes() == final.numel() * final.element_size()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 19)}, ValueError, "x has shape"),
        ({"x": torch.zeros(2, 5, 19, dtype=torch.int64)}, TypeError, "x has dtype torch.int64"),
        ({"weight": torch.zeros(18, 4)}, ValueError, "weight has shape"),
        ({"bias": torch.zeros(4)}, ValueError, "bias has shape"),
        ({"initial_state": torch.zeros(2, 4, 19)}, ValueError, "initial_state has shape"),
        ({"segment_ids": torch.zeros(2, 37)}, TypeError, "segment_ids"),
        ({"segment_ids": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, "segment_ids has"),
        ({"bias": torch.zeros(19, device="meta")}, ValueError, "bias is on meta"),
        ({"activation": "relu"}, ValueError, "activation='relu'"),
        ({"backend": "cuda"}, ValueError, "backend='cuda'"),
    ],
)
def test_refusals_name_the_argument(change: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        causal_conv1d(**{**make(), **change})


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="Triton can run here")
def test_triton_on_the_cpu_says_why_not() -> None:
    with pytest.raises(BackendUnavailable, match="CUDA tensors"):
        causal_conv1d(**make(), backend="triton")
