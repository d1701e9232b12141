"""Cutting a streamed record for prediction equals cutting the whole record by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabio.alphabet import N
from mambabio.cutting import stretches, tile_stream


def _record(seed: int, length: int, runs: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 4, length).astype(np.uint8)
    for _ in range(runs):
        start = rng.integers(0, length + 1)
        ids[start : start + rng.integers(0, length + 1)] = N
    return ids


def _pieces(ids: np.ndarray, seed: int) -> list[np.ndarray]:
    cuts = np.sort(np.random.default_rng(seed + 1).integers(0, len(ids) + 1, 4))
    return np.split(ids, cuts)


def _by_hand(ids: np.ndarray, window: int, policy: str, minimum: int) -> list[list[int]]:
    if policy == "cut":
        parts = [ids[ids != N].tolist()]
    elif policy == "keep":
        parts = [ids.tolist()]
    else:
        text = "".join("N" if i == N else str(i) for i in ids)
        parts = [[int(x) for x in part] for part in text.split("N")]
    found, rests = [], []
    for part in parts:
        full = len(part) // window * window
        found += [part[i : i + window] for i in range(0, full, window)]
        rest = part[full:]
        if rest and len(rest) >= min(minimum, window):
            found.append(rest)
        elif rest:
            rests.append(rest)
    return found or ([max(rests, key=len)] if rests else [])


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 120),
    st.integers(0, 3),
    st.integers(1, 50),
    st.integers(1, 30),
    st.sampled_from(["cut", "split", "keep"]),
)
def test_tiles_of_a_stream(
    seed: int, length: int, runs: int, window: int, minimum: int, policy: str
) -> None:
    ids = _record(seed, length, runs)
    got = tile_stream(_pieces(ids, seed), window, policy, minimum=minimum)
    assert [w.tolist() for w in got] == _by_hand(ids, window, policy, minimum)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.sampled_from(["cut", "split", "keep"]))
def test_stretches_hold_what_the_policy_leaves(seed: int, length: int, policy: str) -> None:
    ids = _record(seed, length, 2)
    parts: list[list[int]] = []
    for begins, piece in stretches(_pieces(ids, seed), policy):
        assert piece.size
        if begins:
            parts.append([])
        parts[-1] += piece.tolist()
    assert parts == _by_hand(ids, 10**6, policy, 0) or policy == "split"
    kept = ids if policy == "keep" else ids[ids != N]
    assert [x for part in parts for x in part] == kept.tolist()
    if policy == "split":
        runs = np.diff(np.concatenate([[True], ids == N]).astype(int))
        assert len(parts) == np.count_nonzero(runs == -1)


@pytest.mark.parametrize("policy", ["cut", "split"])
def test_nothing_but_n_leaves_nothing(policy: str) -> None:
    assert list(tile_stream([np.full(500, N, np.uint8)], 64, policy)) == []
    assert list(tile_stream([], 64, policy)) == []
