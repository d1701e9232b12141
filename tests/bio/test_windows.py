"""Windows: pure functions of seed, step and row; balanced; never across records; tiles."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabio.alphabet import PAD, Ids, reverse_complement
from mambabio.store import SequenceStore, StoredRecord
from mambabio.windows import TrainingWindows, tile_windows
from mambacore.errors import DataError, UsageError


def store_of(
    records: list[tuple[int, int, bool, str]],
    ids: Ids | None = None,
    starts: list[int] | None = None,
) -> SequenceStore:
    """Records (label, length, circular, split) one after the other, over random ids."""
    stored, offset = [], 0
    for i, (label, length, circular, split) in enumerate(records):
        start = starts[i] if starts else 0
        name = "r" if starts else f"r{i}"
        stored.append(
            StoredRecord(name, label, split, offset, length, circular, 2, 0, start, i)  # type: ignore[arg-type]
        )
        offset += length
    labels = tuple(f"l{i}" for i in range(max(label for label, *_ in records) + 1))
    store = SequenceStore(labels, tuple(stored), (), {}, "cut", Path("none"))
    if ids is None:
        ids = np.random.default_rng(0).integers(0, 4, offset).astype(np.uint8)
    store.__dict__["all_ids"] = ids
    return store


RECORDS = [
    (0, 300, False, "train"),
    (0, 90, False, "train"),
    (1, 150, True, "train"),
    (0, 100, False, "val"),
    (2, 5000, False, "train"),
    (2, 64, False, "train"),
]


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**70),
    step=st.integers(0, 10**9),
    ranks=st.sampled_from([1, 2, 3, 4, 6, 12]),
    window=st.integers(64, 150),
)
def test_a_global_batch_is_the_same_however_it_is_dealt(seed, step, ranks, window) -> None:
    whole = TrainingWindows(store_of(RECORDS), seed=seed).batch(step, 0, 1, 12, window)
    parts = [
        TrainingWindows(store_of(RECORDS), seed=seed).batch(step, rank, ranks, 12 // ranks, window)
        for rank in range(ranks)
    ]
    for i, column in enumerate(whole):
        np.testing.assert_array_equal(column, np.concatenate([part[i] for part in parts]))


def test_steps_and_seeds_differ_and_the_past_does_not_matter() -> None:
    windows = TrainingWindows(store_of(RECORDS), seed=3)
    first = windows.batch(7, 0, 1, 16, 100)
    windows.batch(8, 0, 1, 16, 64)
    copy = pickle.loads(pickle.dumps(TrainingWindows(store_of(RECORDS), seed=3)))
    copy.store.__dict__["all_ids"] = windows.store.all_ids
    again = copy.batch(7, 0, 1, 16, 100)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.tokens != windows.batch(8, 0, 1, 16, 100).tokens).any()
    other = TrainingWindows(store_of(RECORDS), seed=4).batch(7, 0, 1, 16, 100)
    assert (first.tokens != other.tokens).any()


@settings(max_examples=30)
@given(
    lengths=st.lists(st.tuples(st.integers(64, 400), st.booleans()), min_size=1, max_size=6),
    window=st.integers(64, 200),
    seed=st.integers(0, 1000),
)
def test_every_window_is_a_stretch_of_one_record_of_its_class(lengths, window, seed) -> None:
    longest = max(length for length, _ in lengths)
    window = min(window, longest)
    records = [(0, length, circular, "train") for length, circular in lengths]
    records += [(1, longest, False, "train"), (1, 500, False, "test")]
    store = store_of(records)
    batch = TrainingWindows(store, seed=seed).batch(0, 0, 1, 32, window)
    assert (batch.lengths == window).all()
    for tokens, label in zip(batch.tokens, batch.labels, strict=True):
        homes = []
        for record in store.records:
            if record.split == "train" and record.label_id == label and record.length >= window:
                text = store.ids(record).tobytes()
                homes.append(text + text[: window - 1] if record.circular else text)
        strands = (tokens.tobytes(), reverse_complement(tokens).tobytes())
        assert any(strand in home for home in homes for strand in strands)


def test_draws_are_uniform_over_classes_positions_and_strands() -> None:
    # Each base tells its own place, so that a window tells where it starts.
    lengths = [200, 100, 164, 100]
    records = [(0, 200, False, "train"), (0, 100, False, "train"), (1, 164, True, "train")]
    records.append((1, 100, False, "val"))
    store = store_of(records, np.arange(sum(lengths)).astype(np.uint8))
    forward = TrainingWindows(store, seed=0, reverse_complement=False)
    windows = forward.batch(0, 0, 1, 40_000, 65)
    share = windows.labels.mean()
    assert abs(share - 0.5) < 0.01
    # Places above 255 come round again: the circular record has 200 + 100 to 463.
    starts = windows.tokens[:, 0].astype(int)
    of_line = np.bincount(starts[windows.labels == 0], minlength=300)
    allowed = np.r_[0:136, 200:236]
    assert (np.delete(of_line, allowed) == 0).all()
    assert of_line[allowed].min() > 0.6 * 20_000 / 172
    assert of_line[allowed].max() < 1.5 * 20_000 / 172
    of_circle = starts[windows.labels == 1]
    assert len(np.unique(of_circle)) == 164
    both = TrainingWindows(store_of(RECORDS), seed=0).batch(0, 0, 1, 4000, 100)
    plain = TrainingWindows(store_of(RECORDS), seed=0, reverse_complement=False)
    same = (both.tokens == plain.batch(0, 0, 1, 4000, 100).tokens).all(axis=1)
    assert abs(same.mean() - 0.5) < 0.03
    flipped = plain.batch(0, 0, 1, 4000, 100).tokens[~same]
    np.testing.assert_array_equal(both.tokens[~same], reverse_complement(flipped))


def test_windows_longer_than_records_are_errors_that_name_the_longest() -> None:
    windows = TrainingWindows(store_of(RECORDS), seed=0)
    with pytest.raises(DataError, match=r"9,000 bases.*longest is 'r4' with 5,000"):
        windows.batch(0, 0, 1, 2, 9000)
    with pytest.raises(DataError, match=r"label 'l0' has no training record.*'r0', has 300"):
        windows.batch(0, 0, 1, 2, 400)
    with pytest.raises(UsageError, match="at least 64"):
        windows.batch(0, 0, 1, 2, 63)
    with pytest.raises(UsageError, match="rank 2 of 2"):
        windows.batch(0, 2, 2, 2, 64)
    with pytest.raises(DataError, match="no training records"):
        TrainingWindows(store_of([(0, 90, False, "test")]), seed=0).batch(0, 0, 1, 2, 64)


def test_a_million_bases_in_one_window() -> None:
    store = store_of([(0, 1 << 20, True, "train"), (1, (1 << 20) + 5, False, "train")])
    batch = TrainingWindows(store, seed=0).batch(0, 0, 1, 4, 1 << 20)
    assert batch.tokens.shape == (4, 1 << 20)


def test_training_windows_are_fast() -> None:
    """The best of many, so that a busy machine does not matter: above 20 million bases a second."""
    store = store_of([(i % 5, 16_000, i % 2 == 0, "train") for i in range(500)])
    windows = TrainingWindows(store, seed=0)
    windows.batch(0, 0, 1, 64, 1024)
    best = np.inf
    for step in range(50):
        start = time.perf_counter()
        windows.batch(step, 0, 1, 64, 1024)
        best = min(best, time.perf_counter() - start)
    assert 64 * 1024 / best > 20e6


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=8),
    window=st.integers(64, 300),
    minimum=st.integers(1, 100),
)
def test_tiles_do_not_overlap_and_cover_all_but_the_ends(lengths, window, minimum) -> None:
    store = store_of([(0, length, False, "test") for length in lengths])
    if max(lengths) < min(minimum, window):
        with pytest.raises(DataError, match="the longest is"):
            tile_windows(store, "test", window, minimum=minimum)
        return
    tiles = tile_windows(store, "test", window, minimum=minimum)
    for index, length in enumerate(lengths):
        of_record = tiles.record == index
        starts, sizes = tiles.start[of_record], tiles.length[of_record]
        if length < min(minimum, window):
            assert len(starts) == 0
        elif length < window:
            assert (starts.tolist(), sizes.tolist()) == ([0], [length])
        else:
            assert starts.tolist() == list(range(0, length - window + 1, window))
            assert (sizes == window).all()
    short = sum(length < min(minimum, window) for length in lengths)
    assert sum(tiles.dropped.values()) == short
    batch = tiles.batch(slice(None))
    for row, index, start, size in zip(
        batch.tokens, tiles.record, tiles.start, batch.lengths, strict=True
    ):
        expected = store.ids(int(index), int(start), int(size))
        np.testing.assert_array_equal(row[:size], expected)
        assert (row[size:] == PAD).all()


def test_groups_are_records_or_blocks_of_long_ones() -> None:
    store = store_of(
        [(0, 210_000, False, "test"), (0, 16_000, False, "test"), (1, 90, False, "val")]
    )
    tiles = tile_windows(store, "test", 1000)
    long = tiles.group[tiles.record == 0]
    assert [int((long == g).sum()) for g in np.unique(long)] == [50, 50, 50, 50, 10]
    assert len(np.unique(tiles.group[tiles.record == 1])) == 1
    assert len(np.unique(tiles.group)) == 6
    wide = tile_windows(store, "test", 60_000)
    assert len(np.unique(wide.group[wide.record == 0])) == 3
    pieces = store_of([(0, 100_000, False, "test")] * 2, starts=[0, 150_000])
    assert len(np.unique(tile_windows(pieces, "test", 1000).group)) == 4
    near = store_of([(0, 60_000, False, "test")] * 2, starts=[0, 60_010])
    assert len(np.unique(tile_windows(near, "test", 1000).group)) == 1
    taken = tiles.take([3, 0])
    np.testing.assert_array_equal(taken.batch([1]).tokens, tiles.batch([0]).tokens)
    with pytest.raises(DataError, match="no train records"):
        tile_windows(store, "train", 100)


@given(most=st.integers(1, 60))
def test_spread_windows_are_distinct_and_evenly_spread(most: int) -> None:
    tiles = tile_windows(store_of(RECORDS), "train", 100)
    few = tiles.spread(most)
    assert len(few) == min(most, len(tiles))
    places = [
        int(np.flatnonzero((tiles.record == r) & (tiles.start == s))[0])
        for r, s in zip(few.record, few.start, strict=True)
    ]
    gaps = np.diff(places)
    assert gaps.size == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
