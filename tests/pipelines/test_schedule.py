"""Schedules are pure functions of the fraction that is done."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambacore.errors import UsageError
from mambapipelines.schedule import Pace, learning_rate_factor, length_stages, stage_at

fractions = st.floats(0, 1)


@given(fractions, st.floats(0, 0.9), st.floats(0, 0.9))
def test_the_learning_rate_rises_then_falls(fraction, warmup, final):
    factor = learning_rate_factor(fraction, warmup, final)
    assert 0 <= factor <= 1 + 1e-12
    later = learning_rate_factor(min(1.0, fraction + 0.01), warmup, final)
    if fraction >= warmup:
        assert final - 1e-12 <= factor
        assert later <= factor + 1e-12
    elif fraction + 0.01 < warmup:
        assert later > factor
    assert learning_rate_factor(1.0, warmup, final) == pytest.approx(final)


@given(
    window=st.integers(64, 1 << 20),
    tokens=st.integers(64, 1 << 22),
    first=st.integers(64, 1 << 20),
    warmup=st.floats(0, 0.95),
    fraction=fractions,
)
def test_stages_double_the_length_at_constant_tokens(window, tokens, first, warmup, fraction):
    stages = length_stages(window, tokens, first, warmup)
    assert stages[0].start == 0
    assert stages[-1].window == window
    for shorter, longer in itertools.pairwise(stages):
        assert longer.window // 2 == shorter.window >= first
        assert shorter.start < longer.start or warmup < 1e-300
        assert longer.start <= warmup + 1e-12
    for stage in stages:
        assert stage.batch == 1 or tokens - stage.window < stage.batch * stage.window <= tokens
    assert stage_at(stages, fraction).start <= fraction
    assert stage_at(stages, 1.0).window == window


def test_stages_refuse_nonsense():
    with pytest.raises(UsageError, match="window 0"):
        length_stages(0, 100, 64, 0.5)


@given(
    seconds=st.lists(st.floats(0.01, 3), min_size=30, max_size=60),
    lag=st.integers(0, 6),
    cut=st.integers(1, 25),
)
def test_pace_is_the_same_ahead_of_time_and_after_a_resume(seconds, lag, cut):
    """A batch prepared `lag` steps early, or in a resumed training, gets the same answer."""

    def passed(step: int) -> float:
        return sum(seconds[:step])

    whole, early = Pace(100, 40.0, lag), {}
    for step in range(len(seconds)):
        whole.tick(step, passed(step))
        early[step + lag] = whole.fraction(step + lag)
    late = Pace(100, 40.0, lag)
    for step in range(cut):
        late.tick(step, passed(step))
    resumed = Pace(100, 40.0, lag)
    resumed.load_state_dict(late.state_dict())
    for step in range(cut, len(seconds)):
        resumed.tick(step, passed(step))
        assert resumed.fraction(step) == early.get(step, resumed.fraction(step))
    ordered = [early[step] for step in sorted(early)]
    assert ordered == sorted(ordered)


def test_pace_without_a_time_limit_needs_no_clock():
    pace = Pace(200)
    pace.tick(10, 1e9)
    assert pace.fraction(50) == 0.25
    assert pace.fraction(500) == 1.0
    assert pace.state_dict() == {"readings": []}
