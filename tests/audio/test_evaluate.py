"""Evaluation: rows add up, floors use the same codes, context helps a model that uses it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mambaaudio.bits import Scorer
from mambaaudio.corpus import Corpus, build_corpus
from mambaaudio.evaluate import TARGET, corpus_floors, evaluate
from mambaaudio.evaluation import Evaluation
from mambaaudio.floors import bits
from mambaaudio.model import WaveformModel
from mambaaudio.model_config import WaveformConfig
from mambaaudio.rows import Coder, Layout
from mambaaudio.sheet import load_samples
from mambaaudio.synth import write_notes
from mambacore.errors import DataError, UsageError
from mambacore.multiscale import MultiScaleConfig

RATE = 4000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("notes")
    sheet = load_samples(write_notes(folder, rate=RATE, seconds=0.2, takes=3))
    return build_corpus(sheet, folder / "cache", validation=0, log=lambda line: None)


def _model(corpus: Corpus) -> WaveformModel:
    torch.manual_seed(0)
    backbone = MultiScaleConfig(d_model=8, pools=(2,), n_layer=1, mixers=("s4d", "mamba"))
    config = WaveformConfig(
        corpus.rate, backbone=backbone, labels=corpus.labels, speakers=corpus.speakers
    )
    return WaveformModel(config).eval()


def test_rows_are_parts_of_the_whole(corpus: Corpus) -> None:
    scorer = Scorer(_model(corpus))
    left_out = corpus.speakers[0]
    found = evaluate(scorer, corpus, split="test", without=[left_out], contexts=(64,))
    recordings = corpus.select("test")
    coder = Coder(corpus, Layout())
    codes = [coder.encode(corpus.samples(r), r.gain) for r in recordings]
    own = [
        scorer.stream(r.label_id, r.speaker_id)(c) for r, c in zip(recordings, codes, strict=True)
    ]
    assert found.total.bits == pytest.approx(np.concatenate(own).mean(), abs=1e-4)
    assert found.total.samples == sum(len(c) for c in codes)
    for floor in corpus_floors(corpus, "mulaw8"):
        expected = np.concatenate([bits(floor, c) for c in codes]).mean()
        assert found.total.floors[floor.name] == pytest.approx(expected)
    for rows in (found.by_label, found.by_speaker, found.files):
        assert sum(row.samples for row in rows) == found.total.samples
        total = sum(row.bits * row.samples for row in rows) / found.total.samples
        assert total == pytest.approx(found.total.bits)
    assert [row.name for row in found.by_label] == list(corpus.labels)
    others = [row for row in found.by_speaker if row.name != left_out]
    assert found.without[0].samples == sum(row.samples for row in others)
    assert "no recording is longer" in str(found.no_contexts)
    assert Evaluation.from_dict(found.to_dict()) == found
    assert "linear prediction" in found.to_text()
    assert left_out in found.to_text()


def test_untold_is_another_figure(corpus: Corpus) -> None:
    scorer = Scorer(_model(corpus))
    told = evaluate(scorer, corpus, split="val", floors=())
    untold = evaluate(scorer, corpus, split="val", floors=(), conditions=False)
    assert told.total.bits != untold.total.bits
    assert (told.conditions, untold.conditions) == (True, False)


class _Remembers:
    """Sure of the symbol that came `lag` symbols ago, where it was heard; else of nothing."""

    def __init__(self, config: WaveformConfig, lag: int) -> None:
        self.config, self._lag = config, lag
        self.device = torch.device("cpu")

    def shift(self, codes: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
        first = torch.full((len(codes), 1), 256) if before is None else before[:, None]
        return torch.cat([first, codes[:, :-1]], 1)

    def __call__(
        self, codes: torch.Tensor, state: Any = None, **conditions: Any
    ) -> tuple[torch.Tensor, Any]:
        past = codes if state is None else torch.cat([state, codes], 1)
        logits = torch.zeros(*codes.shape, 256)
        at = torch.arange(past.shape[1] - codes.shape[1], past.shape[1]) - self._lag + 1
        known = at >= 1
        logits[:, known] = 20.0 * torch.nn.functional.one_hot(past[:, at[known]], 256).float()
        return logits, past


def test_context_is_what_was_heard_before_the_same_targets(tmp_path: Path) -> None:
    """A signal of period 1,000 is known to who remembers 1,000 samples, from there on."""
    lag = 1000
    period = np.random.default_rng(0).uniform(-0.9, 0.9, lag)
    soundfile.write(tmp_path / "a.wav", np.tile(period, 12), RATE, subtype="PCM_16")
    corpus = build_corpus(
        load_samples(tmp_path), tmp_path / "c", validation=0, log=lambda line: None
    )
    scorer: Any = Scorer(_Remembers(WaveformConfig(RATE), lag), chunk=1 << 14)
    found = evaluate(
        scorer, corpus, split="train", floors=(), contexts=(600, 2000), context_blocks=3
    )
    short, long = found.contexts
    assert (short.context, long.context) == (600, 2000)
    assert found.context_targets == 3 * TARGET
    sure = math.log2(1 + 255 * math.exp(-20))
    assert long.bits == pytest.approx(sure, abs=1e-5)
    # The first 1,000 - 600 targets of each stretch cost 8 bits.
    assert short.bits == pytest.approx(8 * 400 / TARGET, abs=1e-3)


def test_every_recording_that_is_long_enough_is_among_the_targets(tmp_path: Path) -> None:
    """One of three stretches is noise, which whoever expects a period is wrong about."""
    period = np.random.default_rng(0).uniform(-0.9, 0.9, 1000)
    noise = np.random.default_rng(1).uniform(-0.9, 0.9, 2000 + TARGET)
    for name, wave in {"a": np.tile(period, 40), "b": noise, "c": period}.items():
        soundfile.write(tmp_path / f"{name}.wav", wave, RATE, subtype="PCM_16")
    corpus = build_corpus(
        load_samples(tmp_path), tmp_path / "c", validation=0, log=lambda line: None
    )
    scorer: Any = Scorer(_Remembers(WaveformConfig(RATE), 1000), chunk=1 << 14)
    bits = []
    for blocks in (3, 1):
        options = {"floors": (), "contexts": (2000,), "context_blocks": blocks}
        found = evaluate(scorer, corpus, split="train", **options)
        assert found.context_targets == blocks * TARGET
        bits.append(found.contexts[0].bits)
    wrong = 20 / math.log(2)
    assert bits[0] == pytest.approx(wrong / 3, rel=0.02)
    assert bits[1] < 1e-4


def test_what_does_not_fit_is_said(corpus: Corpus) -> None:
    model = _model(corpus)
    with pytest.raises(UsageError, match="left out"):
        evaluate(Scorer(model), corpus, without=["nobody"])
    other = WaveformModel(WaveformConfig(RATE, backbone=model.config.backbone)).eval()
    with pytest.raises(UsageError, match="labels"):
        evaluate(Scorer(other), corpus)
    with pytest.raises(DataError, match="this is no evaluation"):
        Evaluation.from_dict({"split": "test"})
