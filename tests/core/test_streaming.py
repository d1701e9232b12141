"""One property for everything causal: whole = any chunks = single steps, packed = separate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers import assert_close
from mambacore import Backbone, Block, LanguageModel, ModelConfig, build_mixer, state

WIDTH = 8
# float32 paths of different shape (FFT, scan, steps) over short sequences.
ROUNDING = 2e-5


def _make(kind: str) -> nn.Module:
    torch.manual_seed(7)
    options: dict[str, dict[str, Any]] = {
        "mamba": {"d_state": 4},
        "mamba-zoh": {"d_state": 3, "d_conv": 2, "discretization": "zoh", "dt_max": 1.0},
        "mamba-wide": {"d_state": 2, "d_conv": 1, "expand": 1, "bias": True, "conv_bias": False},
        "s4d": {"d_state": 8, "dt_max": 0.5},
        "s4d-blocks": {"d_state": 6, "block": 7},
        "attention": {"n_heads": 2},
    }
    if kind in options:
        return build_mixer(kind.split("-")[0], WIDTH, **options[kind])
    config = ModelConfig(
        d_model=WIDTH,
        n_layer=3,
        layers=("mamba", "s4d", "attention"),
        mixer_options={"attention": {"n_heads": 2}},
        mlp_expand=2.0,
    )
    return Block(config, "mamba") if kind == "block" else Backbone(config)


MIXERS = ("mamba", "mamba-zoh", "mamba-wide", "s4d", "s4d-blocks", "attention")
ALL = (*MIXERS, "block", "backbone")


def _in_chunks(
    module: nn.Module, x: Tensor, cuts: list[int], segment_ids: Tensor | None = None
) -> tuple[Tensor, Any]:
    carried, outputs = None, []
    for start, end in zip([0, *cuts], [*cuts, x.shape[1]], strict=True):
        ids = None if segment_ids is None else segment_ids[:, start:end]
        y, carried = module(x[:, start:end], carried, segment_ids=ids)
        outputs.append(y)
    return torch.cat(outputs, dim=1), carried


def _assert_states(got: Any, expected: Any) -> None:
    for a, b in zip(state.tensors(got), state.tensors(expected), strict=True):
        if a.is_complex():
            a, b = torch.view_as_real(a), torch.view_as_real(b)
        assert_close(a, b, 1e-4, "state")


@st.composite
def _cut_lengths(draw: st.DrawFn) -> tuple[int, list[int]]:
    length = draw(st.integers(2, 50))
    return length, sorted(draw(st.sets(st.integers(1, length - 1), max_size=5)))


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=12, deadline=None)
@given(shape=_cut_lengths(), seed=st.integers(0, 2**16))
def test_whole_equals_chunks(kind: str, shape: tuple[int, list[int]], seed: int) -> None:
    length, cuts = shape
    module = _make(kind)
    x = torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(seed))
    whole, after = module(x)
    chunked, after_chunks = _in_chunks(module, x, cuts)
    assert_close(chunked, whole, ROUNDING, kind)
    _assert_states(after_chunks, after)


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("kind", ALL)
def test_whole_equals_single_steps(kind: str, grad: bool) -> None:
    module = _make(kind)
    x = torch.randn(3, 23, WIDTH)
    with torch.set_grad_enabled(grad):
        whole, after = module(x)
        stepped, after_steps = _in_chunks(module, x, list(range(1, 23)))
    assert_close(stepped, whole, ROUNDING, kind)
    _assert_states(after_steps, after)


@pytest.mark.parametrize("kind", ALL)
def test_initial_state_is_no_state(kind: str) -> None:
    module = _make(kind)
    if kind == "block":
        module = module.mixer
    x = torch.randn(2, 5, WIDTH)
    y, after = module(x, module.initial_state(2))
    expected, expected_after = module(x)
    assert_close(y, expected, ROUNDING)
    _assert_states(after, expected_after)


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_packed_equals_separate(kind: str, data: st.DataObject) -> None:
    """Also where the packed row is cut into chunks, in the middle of a segment or between two."""
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4), label="lengths")
    # Ids may come back: neighbours differ, and that is all that counts.
    ids = [0]
    for _ in lengths[1:]:
        ids.append(data.draw(st.sampled_from([i for i in (0, 1, 2, 9) if i != ids[-1]])))
    total = sum(lengths)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, total - 1)), max_size=4), label="cuts"))
    cuts = [cut for cut in cuts if cut < total]
    module = _make(kind)
    x = torch.randn(1, total, WIDTH, generator=torch.Generator().manual_seed(total))
    segment_ids = torch.repeat_interleave(torch.tensor(ids), torch.tensor(lengths))[None]
    # A second row that is packed differently: rows are reset one by one.
    x, segment_ids = x.repeat(2, 1, 1), torch.cat([segment_ids, torch.zeros_like(segment_ids)])

    separate = [module(part)[0] for part in x[:1].split(lengths, dim=1)]
    last = module(x[:1].split(lengths, dim=1)[-1])[1]
    expected = torch.cat([torch.cat(separate, dim=1), module(x[1:])[0]])
    packed, after = module(x, segment_ids=segment_ids)
    assert_close(packed, expected, ROUNDING, "packed")
    chunked, after_chunks = _in_chunks(module, x, cuts, segment_ids)
    assert_close(chunked, expected, ROUNDING, "packed, in chunks")
    if kind != "attention" and kind != "backbone":  # their caches differ in how much is forgotten
        _assert_states(after_chunks, after)
        recurrent = [a[0] for a in state.tensors(after) if a.is_floating_point() or a.is_complex()]
        alone = [a[0] for a in state.tensors(last) if a.is_floating_point() or a.is_complex()]
        for a, b in zip(recurrent, alone, strict=True):
            assert_close(torch.view_as_real(a + 0j), torch.view_as_real(b + 0j), 1e-4)


@pytest.mark.parametrize("kind", ALL)
def test_single_steps_through_segments(kind: str) -> None:
    module = _make(kind)
    x = torch.randn(2, 12, WIDTH)
    segment_ids = torch.tensor([[0] * 5 + [1] + [2] * 6, [4] * 12])
    expected, _ = module(x, segment_ids=segment_ids)
    with torch.no_grad():
        stepped, _ = _in_chunks(module, x, list(range(1, 12)), segment_ids)
    assert_close(stepped, expected, ROUNDING)


@pytest.mark.parametrize("kind", ALL)
def test_a_state_of_nan_does_not_survive_a_reset(kind: str) -> None:
    module = _make(kind)
    _, carried = module(torch.full((1, 3, WIDTH), torch.nan))
    x = torch.randn(1, 4, WIDTH)
    ids = torch.ones(1, 4, dtype=torch.int32)
    y, _ = module(x, carried, segment_ids=ids)
    assert_close(y, module(x)[0], ROUNDING)


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("kind", ALL)
def test_gradients_pass_through_the_state(kind: str, segments: bool) -> None:
    """Back-propagation through chunks is back-propagation through the whole."""
    module = _make(kind).double()
    x = torch.randn(2, 11, WIDTH, dtype=torch.float64)
    weight = torch.randn(2, 11, WIDTH, dtype=torch.float64)
    ids = torch.tensor([[0] * 6 + [1] * 5, [0] * 11]) if segments else None
    gradients = []
    for cuts in ([], [4, 5, 9]):
        leaf = x.clone().requires_grad_()
        y, _ = _in_chunks(module, leaf, cuts, ids)
        wanted = [leaf, *module.parameters()]
        gradients.append(torch.autograd.grad((y * weight).sum(), wanted, allow_unused=True))
    for whole, chunked in zip(*gradients, strict=True):
        if whole is not None:
            assert_close(chunked, whole, 1e-9)


@pytest.mark.parametrize("kind", MIXERS)
def test_the_final_state_is_differentiable(kind: str) -> None:
    module = _make(kind)
    x = torch.randn(1, 6, WIDTH, requires_grad=True)
    _, after = module(x)
    total = sum(t.abs().sum() for t in state.tensors(after) if t.requires_grad)
    (gradient,) = torch.autograd.grad(total, x)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("kind", ALL)
def test_causality(kind: str) -> None:
    module = _make(kind)
    x = torch.randn(1, 20, WIDTH)
    changed = x.clone()
    changed[:, 13:] += 5
    before, after = module(x)[0][:, :13], module(changed)[0][:, :13]
    assert_close(after, before, ROUNDING)


def test_a_wrong_state_is_refused() -> None:
    mixer = _make("mamba")
    x = torch.randn(2, 3, WIDTH)
    _, carried = mixer(x)
    with pytest.raises(ValueError, match="2 rows, the input of 1"):
        mixer(x[:1], carried)
    with pytest.raises(ValueError, match="MambaState, not a tuple"):
        mixer(x, tuple(carried))
    with pytest.raises(ValueError, match="tuple of 3 layer states"):
        _make("backbone")(x, (carried,))


def test_wrong_inputs_are_refused() -> None:
    mixer = _make("s4d")
    with pytest.raises(ValueError, match=r"shape \(2, 3, 9\)"):
        mixer(torch.randn(2, 3, 9))
    with pytest.raises(ValueError, match="segment_ids has shape"):
        mixer(torch.randn(2, 3, WIDTH), segment_ids=torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="must be integers"):
        mixer(torch.randn(2, 3, WIDTH), segment_ids=torch.zeros(2, 3))
    model = LanguageModel(ModelConfig(vocab_size=4, d_model=8))
    with pytest.raises(ValueError, match="token 4 is not in the vocabulary, 0 to 3"):
        model(torch.tensor([[4]]))
    with pytest.raises(ValueError, match="length >= 1"):
        model(torch.zeros(1, 0, dtype=torch.int64))


def test_state_utilities() -> None:
    backbone = _make("backbone")
    x = torch.randn(3, 6, WIDTH)
    _, carried = backbone(x)
    assert all(t.grad_fn is None for t in state.tensors(state.detach(carried)))
    assert type(state.detach(carried)[0]) is type(carried[0])
    rows = state.select(carried, [2, 0, 2])
    more = torch.randn(3, 2, WIDTH)
    again, _ = backbone(more[[2, 0, 2]], rows)
    assert_close(again, backbone(more, carried)[0][[2, 0, 2]], 1e-6)
    mask = torch.tensor([True, False, True])
    assert next(state.tensors(state.select(carried, mask))).shape[0] == 2
    assert state.nbytes(carried) == sum(
        t.numel() * t.element_size() for t in state.tensors(carried)
    )
    assert all(t.device.type == "meta" for t in state.tensors(state.to(carried, "meta")))


def test_recurrent_states_do_not_grow() -> None:
    model = LanguageModel(ModelConfig(vocab_size=4, d_model=8, n_layer=2, layers=("mamba", "s4d")))
    _, short = model(torch.zeros(1, 2, dtype=torch.int64))
    _, long = model(torch.zeros(1, 500, dtype=torch.int64))
    assert state.nbytes(short) == state.nbytes(long)
