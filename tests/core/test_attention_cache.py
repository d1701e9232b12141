"""Attention with a cache of fixed size gives the logits that the growing one gives."""

from __future__ import annotations

import pytest
import torch

from helpers import assert_close
from mambacore import AttentionMixer, UsageError
from mambacore.mixers import AttentionState, reserve


def _mixer() -> AttentionMixer:
    torch.manual_seed(0)
    return AttentionMixer(16, n_heads=2).eval()


@pytest.mark.parametrize("parts", [(1,) * 7, (3, 1, 3), (7,)])
@torch.no_grad()
def test_as_the_growing_cache(parts: tuple[int, ...]) -> None:
    mixer, x = _mixer(), torch.randn(3, 12, 16)
    whole, _ = mixer(x)
    _, state = mixer(x[:, :5])
    assert isinstance(state, AttentionState)
    cache = reserve(state, 14)
    places = cache.keys.data_ptr(), cache.values.data_ptr()
    outputs = []
    for part in x[:, 5:].split(parts, dim=1):
        y, cache = mixer(part, cache)
        outputs.append(y)
    assert_close(torch.cat(outputs, dim=1), whole[:, 5:], 1e-5)
    assert (cache.keys.data_ptr(), cache.values.data_ptr()) == places
    assert cache.keys.shape[2] == 14


@torch.no_grad()
def test_rows_whose_segments_began_at_different_places() -> None:
    mixer, x = _mixer(), torch.randn(2, 9, 16)
    ids = torch.tensor([[0] * 6, [0, 0, 0, 0, 1, 1]])
    _, state = mixer(x[:, :6], segment_ids=ids)
    assert state.position.tolist() == [6, 2]
    expected, _ = mixer(x[:, 6:], state)
    got, _ = mixer(x[:, 6:], reserve(state, 9))
    assert_close(got, expected, 1e-5)


@torch.no_grad()
def test_a_full_cache_and_segments_are_refused() -> None:
    mixer, x = _mixer(), torch.randn(1, 4, 16)
    _, state = mixer(x)
    with pytest.raises(UsageError, match="below the 4"):
        reserve(state, 3)
    with pytest.raises(UsageError, match="full"):
        mixer(x[:, :1], reserve(state, 4))
    with pytest.raises(UsageError, match="segment"):
        mixer(x[:, :1], reserve(state, 9), segment_ids=torch.zeros(1, 1, dtype=torch.int64))
