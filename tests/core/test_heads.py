"""Pooling of a sequence in chunks, with padding, equals pooling of the whole."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import assert_close
from mambacore import Pooling, UsageError


def _definition(kind: str, hidden: torch.Tensor, length: int) -> torch.Tensor:
    valid = hidden[:length].double()
    if kind == "mean":
        return valid.mean(dim=0)
    return valid[-1] if kind == "last" else valid.amax(dim=0)


@pytest.mark.parametrize("kind", ["mean", "last", "max"])
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    cuts=st.sets(st.integers(1, 29), max_size=4),
)
def test_chunks_equal_the_whole(kind: str, lengths: list[int], cuts: set[int]) -> None:
    hidden = torch.randn(len(lengths), 30, 5, generator=torch.Generator().manual_seed(1))
    # What lies behind a row's end must not matter, whatever it is.
    for row, length in enumerate(lengths):
        hidden[row, length:] = torch.nan
    expected = torch.stack([_definition(kind, h, n) for h, n in zip(hidden, lengths, strict=True)])
    pool = Pooling(kind)
    counts = torch.tensor(lengths)
    assert_close(pool(hidden, counts), expected.float(), 1e-6, "whole")
    state = pool.start(len(lengths), 5)
    bounds = [0, *sorted(cuts), 30]
    for start, end in itertools.pairwise(bounds):
        state = pool.update(state, hidden[:, start:end], (counts - start).clamp(0, end - start))
    assert_close(pool.finish(state), expected.float(), 1e-6, "chunks")


def test_mean_of_a_million_positions_does_not_drift() -> None:
    pool = Pooling("mean")
    state = pool.start(1, 1)
    chunk = torch.full((1, 1 << 14, 1), 0.1)
    for _ in range(64):
        state = pool.update(state, chunk)
    assert pool.finish(state).item() == pytest.approx(0.1, rel=1e-7)


@pytest.mark.parametrize("kind", ["mean", "last", "max"])
def test_gradients_reach_valid_positions_only(kind: str) -> None:
    hidden = torch.randn(2, 6, 3, requires_grad=True)
    Pooling(kind)(hidden, torch.tensor([6, 2])).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[1, 2:].abs().sum() == 0
    assert hidden.grad[1, :2].abs().sum() > 0


@pytest.mark.parametrize("kind", ["mean", "last", "max"])
def test_an_empty_row_gives_zeros(kind: str) -> None:
    assert Pooling(kind)(torch.ones(1, 3, 2), torch.tensor([0])).tolist() == [[0.0, 0.0]]


def test_refusals() -> None:
    with pytest.raises(UsageError, match="mean, last, max"):
        Pooling("first")
    with pytest.raises(UsageError, match="one a row"):
        Pooling("mean")(torch.ones(2, 3, 2), torch.tensor([1]))
