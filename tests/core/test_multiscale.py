"""The backbone of several rates: causal, streamable at any cut, segments apart."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import assert_close
from mambacore import state as states
from mambacore.errors import UsageError
from mambacore.multiscale import MultiScaleBackbone, MultiScaleConfig

MIXERS = [("mamba",), ("s4d", "mamba", "s4d"), ("mamba", "s4d", "mamba")]


def _model(mixers: tuple[str, ...] = ("mamba",), **settings) -> MultiScaleBackbone:
    torch.manual_seed(1)
    values = {"d_model": 8, "pools": (2, 3), "n_layer": 1} | settings
    model = MultiScaleBackbone(MultiScaleConfig(mixers=mixers, **values)).double()
    # Initialisation makes the pools' share small; larger weights make a leak visible.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pool" in name and parameter.dim() == 2:
                parameter.normal_(std=0.5)
    return model


@pytest.mark.parametrize("mixers", MIXERS)
@pytest.mark.parametrize("unet", [True, False])
@settings(max_examples=6, deadline=None)
@given(cuts=st.lists(st.integers(1, 25), max_size=6), seed=st.integers(0, 99))
def test_whole_is_chunks_is_steps(
    mixers: tuple[str, ...], unet: bool, cuts: list[int], seed: int
) -> None:
    model = _model(mixers, unet=unet)
    x = torch.randn(2, 26, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        whole, _ = model(x)
        for edges in ([0, *sorted(set(cuts)), 26], list(range(27))):
            state, pieces = None, []
            for start, end in itertools.pairwise(edges):
                y, state = model(x[:, start:end], state)
                pieces.append(y)
            assert_close(torch.cat(pieces, 1), whole, 1e-9, "chunks")


@pytest.mark.parametrize("mixers", MIXERS)
def test_nothing_depends_on_the_future_and_the_past_is_heard(mixers: tuple[str, ...]) -> None:
    model = _model(mixers)
    x = torch.randn(1, 24, 8, dtype=torch.float64, requires_grad=True)
    y, _ = model(x)
    reach = torch.zeros(24, 24)
    for t in range(24):
        (gradient,) = torch.autograd.grad(y[0, t].sum(), x, retain_graph=True)
        reach[t] = gradient[0].abs().sum(-1)
    # S4D's FFT leaks rounding errors backwards in time, nothing more.
    assert reach.triu(1).max() < 1e-12 * reach.max()
    # The slowest level hears position 0 from its second frame on.
    assert (reach[6:, 0] > 0).all()


def test_slow_levels_run_only_when_they_are_due() -> None:
    model = _model()
    calls: list[int] = []
    model.level.below.below.up.register_forward_hook(lambda *_: calls.append(step))
    state = None
    for step in range(18):  # noqa: B007
        _, state = model(torch.randn(1, 1, 8, dtype=torch.float64), state)
    assert calls == [5, 11, 17]


@pytest.mark.parametrize("mixers", MIXERS)
@pytest.mark.parametrize("cut", [3, 6, 8, 12, 17])
def test_packed_is_separate(mixers: tuple[str, ...], cut: int) -> None:
    model = _model(mixers)
    x = torch.randn(2, 24, 8, dtype=torch.float64)
    ids = torch.tensor([[0] * 12 + [1] * 12, [5] * 6 + [7] * 18])
    with torch.no_grad():
        packed, _ = model(x, segment_ids=ids)
        separate = torch.stack(
            [
                torch.cat([model(x[:1, :12])[0], model(x[:1, 12:])[0]], 1)[0],
                torch.cat([model(x[1:, :6])[0], model(x[1:, 6:])[0]], 1)[0],
            ]
        )
        assert_close(packed, separate, 1e-9, "packed")
        head, state = model(x[:, :cut], segment_ids=ids[:, :cut])
        tail, _ = model(x[:, cut:], state, segment_ids=ids[:, cut:])
    assert_close(torch.cat([head, tail], 1), separate, 1e-9, "packed and cut")


def test_gradients_flow_through_the_carried_state() -> None:
    model = _model()
    x = torch.randn(1, 13, 8, dtype=torch.float64, requires_grad=True)
    (whole,) = torch.autograd.grad(model(x)[0].square().sum(), x)
    head, state = model(x[:, :7])
    tail, _ = model(x[:, 7:], state)
    (pieces,) = torch.autograd.grad(torch.cat([head, tail], 1).square().sum(), x)
    assert_close(pieces, whole, 1e-9)


def test_rows_of_a_state_can_be_chosen() -> None:
    model = _model()
    x = torch.randn(3, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        whole, _ = model(x)
        _, state = model(x[:, :7])
        tail, _ = model(x[[2, 0], 7:], states.select(state, [2, 0]))
    assert_close(tail, whole[[2, 0], 7:], 1e-9)


def test_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="pool"):
        MultiScaleConfig(pools=(1,))
    with pytest.raises(UsageError, match="3 levels"):
        MultiScaleConfig(pools=(4, 4), mixers=("mamba", "s4d"))
    with pytest.raises(UsageError, match="which no level uses"):
        MultiScaleConfig(mixer_options={"s4d": {}})
    with pytest.raises(UsageError, match="causal"):
        MultiScaleBackbone(MultiScaleConfig(d_model=8, n_layer=1, mixers=("bidirectional",)))
    with pytest.raises(UsageError, match="multiples of the total pooling"):
        _model()(torch.randn(1, 8, 8).double(), segment_ids=torch.tensor([[0] * 3 + [1] * 5]))


def test_an_mlp_a_level() -> None:
    model = _model(("s4d", "s4d", "mamba"), mlp_expand=(1.5, 1.5, 0))
    assert [b.mlp is None for b in model.level.below.below.up.blocks] == [True]
    assert [b.mlp is None for b in model.level.below.up.blocks] == [False]
    assert MultiScaleConfig.from_dict(model.config.to_dict()) == model.config
    assert MultiScaleConfig(mlp_expand=(1.5,)).mlp_expands == (1.5, 1.5, 1.5)
    with pytest.raises(UsageError, match="mlp_expand"):
        MultiScaleConfig(mlp_expand=(1.0, 0.0))
