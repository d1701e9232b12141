"""Holding the level: the factors' formula, when they are renewed, and that every engine obeys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mambaaudio import Generator, WaveformConfig, WaveformModel
from mambaaudio import generator as generation
from mambaaudio.engines import CompiledEngine, TorchEngine
from mambaaudio.generator import Session
from mambaaudio.level import LevelHold
from mambaaudio.sampling import Sampling, Uniforms
from mambacore.errors import UsageError
from mambacore.multiscale import MultiScaleConfig

RATE = 8000
QUIET = (0.02 * np.sin(2 * np.pi * 300 * np.arange(301) / RATE)).astype(np.float32)
LOUD = 20 * QUIET
STEADY = {"core_temperature": 0.7}
HELD = {**STEADY, "hold_level": 2.0}


def _model(mixers: tuple[str, ...] = ("mamba",), **settings) -> WaveformModel:
    """One that draws about digital zero, with a deviation of 40 steps, whatever it hears."""
    torch.manual_seed(2)
    backbone = MultiScaleConfig(d_model=12, pools=(4, 2), n_layer=1, mixers=mixers, expand=1.5)
    model = WaveformModel(WaveformConfig(**({"rate": RATE, "backbone": backbone} | settings)))
    away = torch.arange(256) - 128
    with torch.no_grad():
        model.head.weight *= 0.1
        model.head.bias[:256] = -((away / 40) ** 2) / 2
    return model.eval()


def _joined(session: Session, seconds: float, block: int) -> list[np.ndarray]:
    pieces = [made.waveforms for made in session.blocks(seconds, block)]
    return [np.concatenate(row) for row in zip(*pieces, strict=True)]


def test_factors_are_the_formula() -> None:
    """level^2 after every sample: (1 - k) x^2 + k level^2 with k = exp(-1 / rate)."""
    random = np.random.default_rng(0)
    prompts = random.normal(0, 0.1, (2, 300))
    waves = [random.normal(0, size, 700) for size in (0.2, 0.05)]
    for exponent in (0.5, 1.0, 2.0):
        hold = LevelHold(exponent, prompts, rows=2, rate=500)
        assert np.array_equal(hold.factors, [1.0, 1.0])
        for part in (slice(0, 123), slice(123, 700)):
            hold.update([wave[part] for wave in waves])
        kept = np.exp(-1 / 500)
        for row in range(2):
            first = power = np.mean(prompts[row] ** 2)
            for sample in waves[row]:
                power = kept * power + (1 - kept) * sample**2
            expected = min(1.0, (power / first) ** (exponent / 2))
            assert hold.factors[row] == pytest.approx(expected, rel=1e-9)


def test_factors_are_bounded_and_ended_rows_keep_theirs() -> None:
    hold = LevelHold(2.0, np.array([[0.1, -0.1]]), rows=3, rate=100)
    hold.update([np.full(2000, size) for size in (0.9, 0.0, 0.05)])
    before = hold.factors
    assert before.tolist() == pytest.approx([1, 1 / 16, 0.25], rel=1e-6)
    hold.update([np.empty(0, np.float32)] * 2 + [np.full(2000, 0.1)])
    assert hold.factors[:2].tolist() == before[:2].tolist()
    assert hold.factors[2] == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("code", ["mulaw8", "linear8"])
def test_a_silent_prompt_has_no_level(code: str) -> None:
    generator = Generator(_model(code=code))
    silent = np.zeros_like(QUIET)
    with pytest.raises(UsageError, match="the prompt is digital silence"):
        generator.begin(silent, **HELD)
    with pytest.raises(UsageError, match="the prompt of row 1 is digital silence"):
        generator.begin([QUIET, silent], batch=2, **HELD)
    generator.begin(silent, **STEADY)


def test_a_prompt_and_a_core_temperature_are_needed() -> None:
    with pytest.raises(UsageError, match="needs a prompt"):
        Generator(_model()).begin(**HELD)
    with pytest.raises(UsageError, match="give one below 1"):
        Sampling(hold_level=1)
    for bad in (-0.1, 4.1, float("nan")):
        with pytest.raises(UsageError, match="hold_level must be 0 to 4"):
            Sampling(hold_level=bad, core_temperature=0.5)


@pytest.mark.parametrize("kind", [TorchEngine, CompiledEngine])
def test_a_row_of_a_greater_factor_is_drawn_narrower(kind: type) -> None:
    """And one of factor f is drawn as if the exponent's excess were f times as large."""
    model, zeros = _model(), torch.zeros(3, dtype=torch.int64)
    first = torch.full_like(zeros, model.config.start)

    def drawn(factors: list[float], excess: float) -> np.ndarray:
        engine = kind(
            model, None, first, Uniforms([5, 5, 5]), Sampling(core_temperature=1 / (1 + excess)),
            label=zeros, speaker=zeros,
        )  # fmt: skip
        engine.narrow(np.array(factors))
        return engine.run(200)[0]

    with torch.no_grad():
        made = drawn([1 / 16, 1.0, 16.0], 1.0)
        spread = made.var(axis=1)
        assert spread[0] > 1.3 * spread[1]
        assert spread[1] > 1.3 * spread[2]
        assert np.array_equal(made[1], drawn([1.0] * 3, 1.0)[0])
        assert np.array_equal(made[2], drawn([1.0] * 3, 16.0)[0])


def test_the_level_stays_nearer_to_a_loud_prompts() -> None:
    """And is nobody's business where the prompt is quieter than what is drawn."""
    generator = Generator(_model(code="linear8"))
    prompts = [0.25 * QUIET, 2 * LOUD]
    options = {"batch": 2, "seed": 3, "core_temperature": 0.4}
    plain, held = (
        generator.generate(2.0, prompts, **options, hold_level=level).waveforms
        for level in (0.0, 4.0)
    )
    assert np.array_equal(plain[0], held[0])
    levels = [np.sqrt(np.mean(wave[RATE:] ** 2)) for wave in (plain[1], held[1])]
    assert 1.05 * levels[0] < levels[1] < np.sqrt(np.mean(prompts[1] ** 2))


def test_neither_blocks_nor_the_batch_change_what_is_held() -> None:
    generator = Generator(_model())
    prompts = [LOUD, 2 * LOUD, 1.5 * LOUD]
    options = {"batch": 3, "seed": 7, **HELD}
    whole = generator.generate(0.5, prompts, **options).waveforms
    plain = generator.generate(0.5, prompts, batch=3, seed=7, **STEADY).waveforms
    assert not any(np.array_equal(*pair) for pair in zip(whole, plain, strict=True))
    for block in (37, 1024, 1500):
        again = _joined(generator.begin(prompts, **options), 0.5, block)
        assert all(np.array_equal(*pair) for pair in zip(whole, again, strict=True))
    for row, prompt in enumerate(prompts):
        alone = generator.generate(0.5, prompt, seed=7 + row, **HELD)
        assert np.array_equal(alone.waveforms[0], whole[row])


@pytest.mark.parametrize("mixers", [("mamba",), ("s4d", "mamba", "s4d")])
def test_the_engines_draw_the_same(mixers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_LEAST_INTERVAL", 30)
    monkeypatch.setattr("mambaaudio.level._SECONDS", 0.001)
    model = _model(mixers, end_event=True, labels=("a", "b"))
    with torch.no_grad():
        model.head.bias[model.config.end] = 2.0  # some rows shall end
    prompts = [LOUD, 2 * LOUD, 1.5 * LOUD]
    told = {"label": ["a", None, "b"], "batch": 3, "seed": 1}
    for guidance in (1.0, 2.0):
        one, other, plain = (
            Generator(model, engine=engine).generate(
                0.04, prompts, guidance=guidance, **told, **drawn
            )
            for engine, drawn in (("torch", HELD), ("compiled", HELD), ("compiled", STEADY))
        )
        assert len({len(wave) for wave in one.waveforms}) > 1
        for row in range(3):
            assert np.array_equal(one.waveforms[row], other.waveforms[row])
        assert any(
            not np.array_equal(*pair) for pair in zip(other.waveforms, plain.waveforms, strict=True)
        )
        assert np.array_equal(one.ended, other.ended)


@pytest.mark.parametrize(("pools", "interval"), [((4, 2), 1024), ((5, 3), 1035)])
def test_factors_are_renewed_where_the_slowest_frame_begins(
    pools, interval: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 0 modulo the period of all that was heard and made; without hold_level never."""
    period, events = int(np.prod(pools)), []
    run, narrow = CompiledEngine.run, CompiledEngine.narrow
    monkeypatch.setattr(CompiledEngine, "run", lambda self, n: (events.append(n), run(self, n))[1])
    monkeypatch.setattr(
        CompiledEngine, "narrow", lambda self, f: (events.append("new"), narrow(self, f))[1]
    )
    generator = Generator(_model(backbone=MultiScaleConfig(d_model=8, pools=pools, n_layer=1)))
    generator.generate(0.3, QUIET, **HELD)
    first = -len(QUIET) % period
    assert first
    rest = 2400 - first - 2 * interval
    assert events == [first, "new", interval, "new", interval, "new", rest]
    events.clear()
    # A prompt of whole periods has no shorter first stretch.
    generator.generate(0.3, QUIET[:240], **HELD)
    assert events[:2] == [interval, "new"]
    events.clear()
    generator.generate(0.3, QUIET, **STEADY)
    assert events == [2400]
