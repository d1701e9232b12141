"""Candidates: which goes on, that its state is exactly that of its sound, that seeds are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaaudio import Generator, WaveformConfig, WaveformModel
from mambaaudio import generator as generation
from mambaaudio.codes import code
from mambaaudio.sampling import Uniforms
from mambaaudio.selection import Chooser
from mambacore.errors import UsageError
from mambacore.multiscale import MultiScaleConfig

RATE = 8000
SHORT = 0.005  # seconds between choices: 40 samples
TONE = (0.3 * np.sin(2 * np.pi * 300 * np.arange(301) / RATE)).astype(np.float32)
PROMPTS = [TONE, 0.2 * TONE, 3 * TONE]


def _model(mixers: tuple[str, ...] = ("mamba",), **given) -> WaveformModel:
    torch.manual_seed(2)
    backbone = MultiScaleConfig(d_model=12, pools=(4, 2), n_layer=1, mixers=mixers, expand=1.5)
    model = WaveformModel(WaveformConfig(**({"rate": RATE, "backbone": backbone} | given)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pool" in name and parameter.dim() == 2:
                parameter.normal_(std=0.3)
            if name.startswith("head"):
                parameter.mul_(4)
    return model.eval()


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "SECONDS", SHORT)


def _noise(random: np.random.Generator, level: float) -> np.ndarray:
    wave = random.normal(size=4000)
    return level * wave / np.sqrt(np.mean(wave**2))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    octaves=st.lists(st.floats(-8, 3), min_size=6, max_size=6),
    several=st.booleans(),
)
def test_the_level_nearest_to_the_prompts_goes_on(seed, octaves, several) -> None:
    """By its ratio, up or down, each recording for itself."""
    random, sizes = np.random.default_rng(seed), (0.1, 0.02 if several else 0.1)
    prompts = np.stack([_noise(random, size) for size in sizes[: 1 + several]])
    choice = Chooser(prompts, recordings=2, candidates=3)
    for _ in range(2):
        levels = [sizes[row // 3] * 2.0**octave for row, octave in enumerate(octaves)]
        chosen = choice.choose([_noise(random, level) for level in levels])
        for number, row in enumerate(chosen):
            own = np.abs(octaves[3 * number : 3 * number + 3])
            assert 3 * number <= row < 3 * number + 3
            assert own[row - 3 * number] <= own.min() + 0.01


def test_what_was_just_heard_costs() -> None:
    """30 octaves for the likeness beyond .9 to two seconds' mean, each of them of equal weight."""
    time = np.arange(4096)
    # Whole periods within a frame: orthogonal spectra.
    one, other, third = (np.sin(2 * np.pi * f * time / 2048) for f in (100, 300, 500))
    choice = Chooser(one[None], recordings=1, candidates=2)
    assert choice.choose([one, one / 4]) == [0]
    # Likeness 1 costs three octaves.
    assert choice.choose([one, other / 9]) == [0]
    assert choice.choose([one, other / 7]) == [1]
    # Two to one: .894.
    assert choice.choose([one / 2, third / 4]) == [0]
    # Three to one: .949 costs 1.46 octaves.
    assert choice.choose([one, other * 2.8]) == [0]
    # The first is forgotten, it is still three to one.
    assert choice.choose([one, other * 2.7]) == [1]
    # Two to two.
    assert choice.choose([one, other]) == [0]


def test_equal_ones_silence_and_ends() -> None:
    choice = Chooser(TONE[None], recordings=1, candidates=3)
    assert choice.choose([TONE, TONE, TONE]) == [0]
    none, zeros = np.empty(0, np.float32), np.zeros(300)
    assert choice.choose([none, zeros, none]) == [1]
    assert choice.choose([none, none, none]) == [0]
    assert choice.choose([none, none, 0.001 * TONE]) == [2]


def test_what_cannot_be_kept_is_said() -> None:
    generator = Generator(_model())
    silent = np.zeros_like(TONE)
    with pytest.raises(UsageError, match="the prompt is digital silence"):
        generator.begin(silent, candidates=2)
    with pytest.raises(UsageError, match="the prompt of row 1 is digital silence"):
        generator.begin([TONE, silent], batch=2, candidates=2)
    with pytest.raises(UsageError, match="need a prompt"):
        generator.begin(candidates=2)
    with pytest.raises(UsageError, match="candidates is 0"):
        generator.begin(TONE, candidates=0)
    generator.begin(silent)


def test_candidates_have_streams_of_their_own() -> None:
    drawn = Uniforms([5, 6], 3).draw(50)
    assert np.array_equal(drawn[::3], Uniforms([5, 6]).draw(50))
    assert np.array_equal(drawn[3:5], Uniforms([6], 2).draw(50))
    assert len(np.unique(drawn)) == drawn.size


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("engine", ["torch", "compiled"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize(
    ("mixers", "settings"),
    [(("mamba",), {}), (("s4d", "mamba", "s4d"), {"code": "pcm16", "gain": 0.5})],
)
def test_what_goes_on_has_heard_its_own_sound(engine, guidance, mixers, settings) -> None:
    """The likelihood of every sample is that of scoring the whole, prompt and all."""
    model = _model(mixers, labels=("a",), **settings)
    options = {"label": ["a", None, "a"], "batch": 3, "seed": 4, "guidance": guidance}
    made = Generator(model, engine=engine).generate(0.012, PROMPTS, candidates=4, **options)
    plain = Generator(model, engine=engine).generate(0.012, PROMPTS, **options)
    for row, wave in enumerate(made.waveforms):
        assert not np.array_equal(wave, plain.waveforms[row])
        coder = code(model.config.code)
        sound = np.concatenate([made.prompt[row], wave]) * model.config.gain
        codes = coder.encode(torch.from_numpy(sound))[None]
        label = torch.tensor([model.config.label_id(options["label"][row])])
        with torch.no_grad():
            logs = model(model.shift(codes), label=label)[0].log_softmax(-1)
        told = logs[0].gather(1, codes[0, :, None])[:, 0].double().numpy()
        parts = model.config.symbols_per_sample
        told = told.reshape(-1, parts).sum(1)[len(made.prompt[row]) :]
        assert np.allclose(made.log_probabilities[row], told, rtol=1e-4, atol=1e-4)
        assert made.log_likelihood[row] == pytest.approx(told.sum(), rel=1e-5)


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("heard", [296, 301])
def test_every_interval_is_the_nearest_of_all_drawn(heard: int) -> None:
    """Drawn again, from the state that the sound before has, by the candidates' own numbers."""
    model = _model()
    prompt = TONE[:heard]
    session = Generator(model).begin(prompt, seed=3, candidates=3)
    made = np.concatenate([block.waveforms[0] for block in session.blocks(0.02, block=33)])
    level, before = np.sqrt(np.mean(session.prompt**2)), session.prompt
    streams, start = Uniforms([3], 3), 0
    # Every 40 samples, where a frame of 8 begins.
    for stop in range(40 - heard % 8, len(made) + 1, 40):
        first = Generator(model, engine="torch").begin(before, batch=3)
        first._engine.uniforms = streams
        drawn = first._block(stop - start).waveforms
        ratios = [abs(np.log2(np.sqrt(np.mean(wave**2)) / level)) for wave in drawn]
        assert np.array_equal(made[start:stop], drawn[int(np.argmin(ratios))])
        before, start = np.concatenate([before, made[start:stop]]), stop
    assert start > 100


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("engine", ["torch", "compiled"])
def test_neither_blocks_nor_the_batch_change_it(engine: str) -> None:
    generator = Generator(_model(end_event=True), engine=engine)
    with torch.no_grad():
        generator.model.head.bias[generator.config.end] = 2.0  # some rows shall end
    options = {"candidates": 3, "guidance": 1.0}
    whole = generator.generate(0.03, PROMPTS, batch=3, seed=7, **options)
    assert len({len(wave) for wave in whole.waveforms}) > 1
    for block in (7, 40, 100):
        pieces = [
            made.waveforms
            for made in generator.begin(PROMPTS, batch=3, seed=7, **options).blocks(0.03, block)
        ]
        for row, parts in enumerate(zip(*pieces, strict=True)):
            assert np.array_equal(np.concatenate(parts), whole.waveforms[row])
    for row, prompt in enumerate(PROMPTS):
        alone = generator.generate(0.03, prompt, seed=7 + row, **options)
        assert np.array_equal(alone.waveforms[0], whole.waveforms[row])
        assert alone.ended[0] == whole.ended[row]
        assert alone.log_likelihood[0] == pytest.approx(whole.log_likelihood[row], rel=1e-6)


@pytest.mark.usefixtures("_soon")
def test_the_level_stays_nearer() -> None:
    generator = Generator(_model(code="linear8"))
    for prompt in (2 * TONE, 0.5 * TONE):
        level = np.sqrt(np.mean(prompt**2))
        away = []
        for candidates in (1, 2, 16):
            made = generator.generate(0.5, prompt, batch=2, seed=3, candidates=candidates)
            levels = np.sqrt([np.mean(wave**2) for wave in made.waveforms])
            away.append(np.abs(np.log2(levels / level)).mean())
        assert away[2] < away[1] < away[0]
