"""Drawing: the right distribution, the right symbols left out, the two implementations equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaaudio.sampling import Sampling, Uniforms, pick
from mambacore.errors import UsageError


def test_symbols_follow_the_distribution_and_the_log_probability_is_the_models() -> None:
    logits = torch.tensor([[0.0, 1.0, -2.0, -torch.inf, 0.5]]).expand(40_000, -1)
    uniform = torch.from_numpy(Uniforms([3]).draw(40_000)[0])
    for temperature in (1.0, 0.5):
        symbols, logs = pick(logits, uniform, Sampling(temperature))
        share = torch.bincount(symbols, minlength=5) / len(symbols)
        expected = (logits[0] / temperature).softmax(-1)
        assert (share - expected).abs().max() < 0.01
        assert share[3] == 0
        assert torch.equal(logs, logits.log_softmax(-1)[0, symbols])


def test_truncation_keeps_exactly_the_likeliest() -> None:
    probability = torch.tensor([0.1, 0.4, 0.2, 0.3])
    logits = probability.log().expand(2000, -1)
    uniform = torch.from_numpy(Uniforms([0]).draw(2000)[0])
    for settings_, kept in (
        ({"temperature": 0}, {1}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 2, 3}),
        ({"top_p": 0.3}, {1}),
        ({"top_p": 0.5}, {1, 3}),
        ({"top_p": 1.0}, {0, 1, 2, 3}),
        ({"top_k": 3, "top_p": 0.7}, {1, 3}),
    ):
        symbols, _ = pick(logits, uniform, Sampling(**settings_))
        assert set(symbols.tolist()) == kept, settings_
    assert set(pick(logits, uniform, Sampling(), allowed=2)[0].tolist()) == {0, 1}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([None, 1, 5, 300]),
    top_p=st.sampled_from([None, 0.2, 0.9, 1.0]),
    core=st.sampled_from([1.0, 0.8, 0.5, 0.1]),
    levels=st.sampled_from([257, 256]),
    around=st.sampled_from([None, 0, 120, 256]),
)
def test_the_compiled_draw_is_the_same(
    seed: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    core: float,
    levels: int,
    around: int | None,
) -> None:
    from mambakernels._numba import jit
    from mambakernels.decode import cpu_sampling

    global _compiled
    if _compiled is None:
        draw = cpu_sampling.pick

        @jit
        def call(scores, count, uniform, temperature, top_k, top_p, levels, exponent):
            return draw(scores, 0, count, uniform, temperature, top_k, top_p, levels, exponent)

        _compiled = call
    random = np.random.default_rng(seed)
    scores = random.normal(0, 3, 257).astype(np.float32)
    if around is not None:  # a peak from a fraction of a step to several steps wide
        away = (np.arange(257) - around) / random.uniform(0.1, 5)
        scores -= (away**2 / 2).astype(np.float32)
    scores[random.integers(0, 257, 3)] = scores[0]  # ties
    uniform = random.random()
    sampling = Sampling(temperature, top_k, top_p, core_temperature=core)
    aim = torch.tensor([uniform], dtype=torch.float64)
    expected, _ = pick(torch.from_numpy(scores)[None], aim, sampling, levels=levels)
    top_p = 1.0 if top_p is None else top_p
    got = _compiled(scores, 257, uniform, temperature, top_k or 0, top_p, levels, 1 / core)
    assert got == int(expected)


_compiled = None


def test_the_core_is_sharper_and_everything_else_as_often() -> None:
    """Within two standard deviations of the mean p^(1/T), of the same sum; the end and what is
    far keep theirs."""
    p = torch.tensor([0.02, 0.08, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0, 0.1, 0.2], dtype=torch.float64)
    levels, count = 9, 100_000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    scores = p.log().expand(count, -1)
    symbols, logs = pick(scores, uniform, Sampling(core_temperature=0.5), levels=levels)
    values, told = torch.arange(levels, dtype=torch.float64), p[:levels] / p[:levels].sum()
    mean = (told * values).sum()
    core = (values - mean).abs() <= 2 * (told * (values - mean) ** 2).sum().sqrt()
    assert core.tolist() == [True] * 8 + [False]
    expected = p.clone()
    expected[:8] = p[:8] ** 2 / (p[:8] ** 2).sum() * p[:8].sum()
    drawn = symbols.bincount(minlength=10) / count
    assert torch.allclose(drawn.double(), expected, atol=2e-5)
    # Log-probabilities stay the model's.
    assert torch.allclose(logs.double(), p.log()[symbols], atol=1e-6)


@pytest.mark.parametrize("where", [0, 4, 5])
def test_a_core_of_one_symbol_stays(where: int) -> None:
    """All mass on one value, or on the end event: nothing to sharpen, and no NaN."""
    scores = torch.full((1, 6), -torch.inf)
    scores[0, where] = 0.0
    for uniform in (0.0, 0.999):
        aim = torch.tensor([uniform], dtype=torch.float64)
        assert int(pick(scores, aim, Sampling(core_temperature=0.1), levels=5)[0]) == where


def test_a_rows_numbers_are_its_seeds_alone() -> None:
    many, alone = Uniforms([5, 6, 7]), Uniforms([6])
    drawn = np.concatenate([many.draw(3), many.draw(1), many.draw(7)], 1)
    assert np.array_equal(drawn[1:2], alone.draw(11))
    assert not np.array_equal(drawn[0], drawn[1])


def test_settings_are_checked() -> None:
    for settings_ in ({"temperature": -1}, {"temperature": float("nan")}, {"top_k": 0}):
        with pytest.raises(UsageError, match=next(iter(settings_))):
            Sampling(**settings_)
    for core in (0.0, 1.1, float("nan")):
        with pytest.raises(UsageError, match="core_temperature"):
            Sampling(core_temperature=core)
    for top_p in (0.0, 1.1):
        with pytest.raises(UsageError, match="top_p"):
            Sampling(top_p=top_p)
    with pytest.raises(UsageError, match="seeds"):
        Uniforms([-1])
