"""Generation: every engine draws the same, whatever the batch and the blocks; prompts are exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from helpers import assert_close
from mambaaudio import Generator, WaveformConfig, WaveformModel, code
from mambaaudio.generator import Block, _with_untold, drawn_speakers
from mambaaudio.ranking import bits_per_sample, by_likelihood, kept
from mambaaudio.sampling import Sampling, Uniforms, pick
from mambacore.decoding import DecodingPlan, why_not
from mambacore.errors import DataError, UsageError
from mambacore.multiscale import MultiScaleConfig

TONE = (0.5 * np.sin(2 * np.pi * 300 * np.arange(500) / 8000)).astype(np.float32)


def _model(mixers: tuple[str, ...] = ("mamba",), mlp: float = 0.0, **settings) -> WaveformModel:
    torch.manual_seed(2)
    backbone = MultiScaleConfig(
        d_model=20, pools=(4, 2), n_layer=1, mixers=mixers, mlp_expand=mlp, expand=1.5
    )
    model = WaveformModel(WaveformConfig(**({"rate": 8000, "backbone": backbone} | settings)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pool" in name and parameter.dim() == 2:
                parameter.normal_(std=0.3)
            if name.startswith("head"):
                parameter.mul_(4)
    return model.eval()


CASES = [
    (("mamba",), 0.0, {"labels": ("a", "b")}),
    (("s4d", "mamba", "s4d"), 1.5, {"code": "pcm16", "speakers": ("x",)}),
]


@pytest.mark.parametrize(("mixers", "mlp", "settings"), CASES)
def test_the_plan_is_the_modules_own_step(mixers, mlp, settings) -> None:
    model = _model(mixers, mlp, **settings)
    plan = DecodingPlan(model.backbone, model.embedding, model.head, phases=model.phases)
    codes = torch.randint(256, (2, 37), generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        condition = model.condition(zeros, zeros)
        whole, _ = model(model.shift(codes))
        for cut in (0, 1, 4, 7, 8, 19):
            if cut:
                _, state = model(model.shift(codes[:, :cut]))
                streams = plan.resume(state.backbone, codes[:, cut - 1], condition)
            else:
                streams = plan.start(2, model.shift(codes)[:, 0], condition)
            scores = plan.score(streams, codes[:, cut:].numpy())
            assert_close(torch.from_numpy(scores), whole[:, cut:], 3e-6, f"cut at {cut}")


@pytest.mark.parametrize(("mixers", "mlp", "settings"), CASES)
def test_engines_draw_the_same_and_the_likelihood_is_the_models(mixers, mlp, settings) -> None:
    model = _model(mixers, mlp, **settings)
    options = {"prompt": TONE[:301], "batch": 2, "seed": 4, "top_p": 0.95}
    made = {
        engine: Generator(model, engine=engine).generate(0.02, **options)
        for engine in ("torch", "compiled")
    }
    for row in range(2):
        assert np.array_equal(made["torch"].waveforms[row], made["compiled"].waveforms[row])
    coder = code(model.config.code)
    heard = coder.encode(torch.from_numpy(made["torch"].prompt))
    new = coder.encode(torch.from_numpy(np.stack(made["torch"].waveforms)))
    codes = torch.cat([heard.expand(2, -1), new], 1)
    with torch.no_grad():
        logs = model(model.shift(codes))[0].log_softmax(-1)
    total = logs.gather(2, codes[..., None])[:, heard.shape[0] :, 0].double().sum(1)
    for engine in made:
        likelihood = torch.from_numpy(made[engine].log_likelihood)
        assert_close(likelihood, total, 1e-5, engine)
        for row in range(2):
            assert made[engine].log_probabilities[row].sum() == pytest.approx(
                float(total[row]), rel=1e-5
            )


@pytest.mark.parametrize(("mixers", "mlp", "settings"), CASES)
@pytest.mark.parametrize("prompts", [0, 1, 3])
def test_guided_draws_weigh_the_told_scores_against_the_untold(
    mixers, mlp, settings, prompts: int
) -> None:
    model = _model(mixers, mlp, **settings, end_event=True)
    labels = ["b", "a", None] if model.config.labels else None
    speakers = ["x", "x", None] if model.config.speakers else None
    heard = [TONE[first : first + 301] for first in (0, 90, 45)][:prompts]
    prompt = heard if prompts == 3 else heard[0] if heard else None
    options = {"prompt": prompt, "label": labels, "speaker": speakers, "batch": 3, "seed": 7}
    made = {
        engine: Generator(model, engine=engine).generate(0.012, guidance=3.0, **options)
        for engine in ("torch", "compiled")
    }
    coder, end = code(model.config.code), model.config.end
    for row in range(3):
        waveform = made["torch"].waveforms[row]
        assert np.array_equal(waveform, made["compiled"].waveforms[row])
        new = coder.encode(torch.from_numpy(waveform))
        new = torch.cat([new, torch.tensor([end])[: int(made["torch"].ended[row])]])
        own = heard[row % prompts] if heard else np.zeros(0, np.float32)
        before = coder.encode(torch.from_numpy(own))
        codes = torch.cat([before, new])[None]
        told = {
            "label": torch.tensor([model.config.label_id(labels and labels[row])]),
            "speaker": torch.tensor([model.config.speaker_id(speakers and speakers[row])]),
        }
        with torch.no_grad():
            inputs = model.shift(codes)
            one, other = model(inputs, **told)[0][0], model(inputs)[0][0]
        one, other = (scores[len(before) :].double() for scores in (one, other))
        likelihood = one.log_softmax(-1).gather(1, new[:, None]).sum()
        assert made["torch"].log_likelihood[row] == pytest.approx(float(likelihood), rel=1e-5)
        uniforms = torch.from_numpy(Uniforms([7 + row]).draw(len(new))[0])
        whole, within = (pick(3 * one - 2 * other, uniforms, Sampling(), a)[0] for a in (None, end))
        part = torch.arange(len(new)) % model.config.symbols_per_sample
        assert torch.equal(torch.where(part > 0, within, whole), new)
    # What was told nothing is what it is without guidance.
    plain = Generator(model).generate(0.012, **options)
    assert np.array_equal(plain.waveforms[2], made["torch"].waveforms[2])
    assert not np.array_equal(plain.waveforms[0], made["torch"].waveforms[0])


def test_steadier_values_are_drawn_by_every_engine() -> None:
    model = _model(end_event=True)
    with torch.no_grad():
        model.head.weight.mul_(0.1)
        model.head.bias[:256] = -(((torch.arange(256) - 128) / 30) ** 2) / 2
    options = {"seed": 3, "batch": 2}
    drawn = {"core_temperature": 0.3}
    torch_, compiled = (
        Generator(model, engine=engine).generate(0.05, **options, **drawn)
        for engine in ("torch", "compiled")
    )
    plain = Generator(model).generate(0.05, **options)
    for row in range(2):
        assert np.array_equal(torch_.waveforms[row], compiled.waveforms[row])
        near, far = (
            np.abs(code("mulaw8").encode(torch.from_numpy(made.waveforms[row])) - 128)
            for made in (compiled, plain)
        )
        assert near.float().median() < 0.8 * far.float().median()


def test_steadier_samples_in_parts_are_refused() -> None:
    model = _model(code="pcm16")
    with pytest.raises(UsageError, match="pcm16"):
        Generator(model).begin(core_temperature=0.5)


def test_speakers_are_drawn_by_the_seed_where_none_is_told() -> None:
    model = _model(labels=("a",), speakers=("x", "y", "z"))
    generator, options = Generator(model), {"label": "a", "batch": 12, "seed": 3}
    drawn = generator.generate(0.02, **options)
    assert drawn.speakers == drawn_speakers(model.config, range(3, 15))
    assert set(drawn.speakers) == {"x", "y", "z"}
    told = generator.generate(0.02, speaker=drawn.speakers, **options)
    untold = generator.generate(0.02, speaker=None, **options)
    assert untold.speakers == [None] * 12
    for one, other, none in zip(drawn.waveforms, told.waveforms, untold.waveforms, strict=True):
        assert np.array_equal(one, other)
        assert not np.array_equal(one, none)
    # Who speaks in a prompt is not known; and a guidance follows what was told, not what was drawn.
    assert generator.begin(TONE, **options).speakers == [None] * 12
    with pytest.raises(UsageError, match="guidance 2"):
        generator.begin(guidance=2.0)
    assert generator.begin(guidance=2.0, speaker="y").speakers == ["y"]


def test_drawn_speakers_have_equal_chances() -> None:
    config = _model(speakers=("x", "y", "z")).config
    drawn = drawn_speakers(config, range(3000))
    for name in config.speakers:
        assert drawn.count(name) == pytest.approx(1000, abs=120)
    assert drawn_speakers(_model().config, range(2)) == [None, None]


def test_guidance_drops_the_label_and_keeps_the_speaker() -> None:
    label, speaker = torch.tensor([2, 0, 0, 1]), torch.tensor([3, 3, 0, 0])
    told = _with_untold(label, speaker)
    assert told[0].tolist() == [2, 0, 0, 1, 0, 0, 0, 0]
    assert told[1].tolist() == [3, 3, 0, 0, 3, 0, 0, 0]


def test_guidance_without_a_condition_is_refused() -> None:
    generator = Generator(_model(labels=("a", "b")))
    with pytest.raises(UsageError, match="tell one"):
        generator.begin(guidance=2.0)
    with pytest.raises(UsageError, match="guidance must be"):
        generator.begin(label="a", guidance=-1.0)


def test_a_row_is_the_same_alone_in_a_batch_and_in_blocks_of_any_size() -> None:
    generator = Generator(_model(labels=("a", "b")))
    batch = generator.generate(0.05, batch=3, seed=10, label=["a", None, "b"])
    again = generator.generate(0.05, batch=3, seed=10, label=["a", None, "b"])
    alone = generator.generate(0.05, seed=12, label="b")
    for row in range(3):
        assert np.array_equal(batch.waveforms[row], again.waveforms[row])
    assert np.array_equal(alone.waveforms[0], batch.waveforms[2])
    assert not np.array_equal(batch.waveforms[0], batch.waveforms[1])
    session = generator.begin(batch=3, seed=10, label=["a", None, "b"])
    pieces: list[Block] = [*session.blocks(0.02, block=37), *session.blocks(0.03, block=64)]
    for row in range(3):
        joined = np.concatenate([piece.waveforms[row] for piece in pieces])
        assert np.array_equal(joined, batch.waveforms[row])
    assert np.allclose(session.log_likelihood, batch.log_likelihood)


def test_going_on_after_a_prompt_is_going_on_after_having_made_it() -> None:
    generator = Generator(_model())
    whole = generator.generate(0.04, seed=1, temperature=0)
    half = len(whole.waveforms[0]) // 2
    rest = generator.generate(0.02, whole.waveforms[0][:half], seed=9, temperature=0)
    assert np.array_equal(rest.waveforms[0], whole.waveforms[0][half:])
    assert np.array_equal(rest.prompt, whole.waveforms[0][:half])


def test_rows_go_on_from_prompts_of_their_own() -> None:
    model = _model(labels=("a", "b"))
    prompts = [TONE[:333], 0.3 * TONE[100:433], np.zeros(333, np.float32)]
    options = {"label": ["a", "b", "a"], "batch": 3, "seed": 7}
    for engine in ("torch", "compiled"):
        generator = Generator(model, engine=engine)
        together = generator.generate(0.02, prompts, **options)
        for row, prompt in enumerate(prompts):
            label = options["label"][row]
            alone = generator.generate(0.02, prompt, label=label, seed=7 + row)
            assert np.array_equal(together.waveforms[row], alone.waveforms[0])
            assert np.array_equal(together.prompt[row], alone.prompt)
    with pytest.raises(UsageError, match="2 prompts for 3 rows"):
        generator.generate(0.02, prompts[:2], **options)
    with pytest.raises(UsageError, match="300 to 333 samples"):
        generator.generate(0.02, [prompts[0], prompts[1], TONE[:300]], **options)


def test_the_end_event_stops_its_row_alone() -> None:
    model = _model(end_event=True)
    with torch.no_grad():
        model.head.bias[256] += 3.0
    for engine in ("torch", "compiled"):
        made = Generator(model, engine=engine).generate(0.05, batch=4, seed=0)
        lengths = [len(samples) for samples in made.waveforms]
        assert made.ended.any()
        assert len(set(lengths)) > 1
        for row in range(4):
            assert made.ended[row] == (lengths[row] < 400)
            assert len(made.log_probabilities[row]) == lengths[row]
            # The end event's own probability counts, nothing after it does.
            total = made.log_probabilities[row].sum(dtype=np.float64)
            assert (made.log_likelihood[row] < total - 1e-3) == made.ended[row]


def test_prompts_are_resampled_cut_scaled_and_refused(tmp_path: Path) -> None:
    generator = Generator(_model(gain=0.5))
    path = tmp_path / "stereo.wav"
    tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    soundfile.write(path, np.stack([tone, tone], 1), 16000)
    said: list[str] = []
    made = generator.generate(0.01, path, prompt_start=0.2, prompt_seconds=0.5, notice=said.append)
    assert len(said) == 2
    assert "2 channels" in said[0]
    assert "16000 Hz to the model's 8000 Hz" in said[1]
    assert len(made.prompt) == 4000
    assert 0.38 < np.abs(made.prompt).max() < 0.42  # the gain was undone
    for bad, error, text in (
        (np.array([0.1, np.nan], np.float32), DataError, "sample 1"),
        (np.zeros(0, np.float32), DataError, "no samples"),
        (np.zeros((3, 2), np.float32), UsageError, "one channel"),
        (tmp_path / "gone.wav", DataError, "gone.wav"),
    ):
        with pytest.raises(error, match=text):
            generator.generate(0.01, bad)
    with pytest.raises(UsageError, match=r"lasts 1.000 s"):
        generator.generate(0.01, path, prompt_start=2, notice=said.append)
    with pytest.raises(UsageError, match="without labels"):
        generator.generate(0.01, label="seven")
    with pytest.raises(UsageError, match="seconds"):
        generator.generate(0)


def test_scores_that_are_not_numbers_are_an_error_with_a_place() -> None:
    model = _model()
    with torch.no_grad():
        model.backbone.norm_f.weight[0] = torch.nan
    for engine in ("torch", "compiled"):
        with pytest.raises(DataError, match="sample 0"):
            Generator(model, engine=engine).generate(0.01)


def test_an_engine_that_cannot_run_the_model_says_why() -> None:
    model = _model().double()
    assert "float64" in (why_not(model.backbone) or "")
    with pytest.raises(UsageError, match="float64"):
        Generator(model, engine="compiled").generate(0.01)
    assert len(Generator(model).generate(0.01).waveforms[0]) == 80
    with pytest.raises(UsageError, match="graph"):
        Generator(model, engine="graph").generate(0.01)


def test_ranking_rejects_the_extremes() -> None:
    bits = [2.0, 1.0, float("nan"), 3.0, 1.5]
    assert by_likelihood(bits) == [1, 4, 0, 3, 2]
    assert kept(bits, likeliest=0.2, unlikeliest=0.4) == [0, 4]
    assert kept(bits) == [0, 1, 2, 3, 4]
    assert bits_per_sample(-np.log(4) * 10, 10) == pytest.approx(2)
    with pytest.raises(UsageError):
        kept(bits, likeliest=0.5, unlikeliest=0.5)


@pytest.mark.gpu
@pytest.mark.parametrize(("mixers", "mlp", "settings"), CASES)
def test_the_graph_draws_what_steps_draw(mixers, mlp, settings) -> None:
    model = _model(mixers, mlp, end_event=True, **settings).cuda()
    own = [TONE[:301], 0.5 * TONE[100:401]]
    label = "a" if model.config.labels else None
    speaker = "x" if model.config.speakers else None
    for options in (
        {"batch": 3},
        {"prompt": TONE[:301], "batch": 2, "top_k": 50},
        {"prompt": own, "batch": 2},
        {"prompt": own, "batch": 2, "guidance": 2.0, "label": label, "speaker": speaker},
    ):
        made = [
            Generator(model, engine=engine).generate(0.05, seed=4, **options)
            for engine in ("torch", "graph", "graph-modules")
        ]
        for again in made[1:]:
            for one, other in zip(made[0].waveforms, again.waveforms, strict=True):
                assert np.array_equal(one, other)
            assert np.allclose(made[0].log_likelihood, again.log_likelihood, rtol=1e-5)
        # In pieces that are no periods, and replayed again.
        session = Generator(model, engine="graph").begin(seed=4, **options)
        pieces = list(session.blocks(0.05, block=37))
        for row, samples in enumerate(made[0].waveforms):
            assert np.array_equal(np.concatenate([p.waveforms[row] for p in pieces]), samples)
