"""Bits of a model: chunks, batches and files cost what the whole sequence costs."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional

from mambaaudio.bits import Scorer
from mambaaudio.codes import code
from mambaaudio.model import WaveformModel
from mambaaudio.model_config import WaveformConfig
from mambaaudio.scoring import coded_blocks, score_file
from mambacore.errors import DataError, UsageError
from mambacore.multiscale import MultiScaleConfig

RATE = 4000


def _model(name: str = "mulaw8", **settings: object) -> WaveformModel:
    torch.manual_seed(0)
    backbone = MultiScaleConfig(
        d_model=8, pools=(2, 4), n_layer=1, mixers=("s4d", "s4d", "mamba"), unet=True
    )
    config = WaveformConfig(
        RATE, code=name, backbone=backbone, labels=("a", "b"), speakers=("x",), end_event=True,
        **settings,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    return WaveformModel(config).eval()


def _wave(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    return np.rint(32768 * (0.3 * np.sin(1500 * t) + rng.normal(0, 0.02, len(t)))) / 32768


def _codes(wave: np.ndarray, name: str = "mulaw8") -> np.ndarray:
    return code(name).encode(torch.from_numpy(wave.astype(np.float32))).numpy()


@pytest.mark.parametrize("name", ["mulaw8", "pcm16"])
def test_chunks_cost_what_the_cross_entropy_of_the_whole_says(name: str) -> None:
    model, codes = _model(name), _codes(_wave(0.3), name)
    width = code(name).symbols_per_sample
    symbols = torch.from_numpy(codes)[None]
    label, speaker = torch.tensor([2]), torch.tensor([1])
    with torch.no_grad():
        logits, _ = model(model.shift(symbols), label=label, speaker=speaker)
    nats = functional.cross_entropy(logits[0], symbols[0], reduction="none")
    expected = (nats.double() / math.log(2)).view(-1, width).sum(1).numpy()
    for chunk in (10_000, 97):
        feed = Scorer(model, chunk=chunk).stream(2, 1)
        cuts = np.array([3, 4, 500, 777]) * width
        found = np.concatenate([feed(part) for part in np.split(codes, cuts)])
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_recordings_side_by_side_cost_what_they_cost_alone() -> None:
    model = _model()
    recordings = [_codes(_wave(s, i)) for i, s in enumerate((0.1, 0.3, 0.02, 0.25, 0.1))]
    recordings.append(recordings[0][:0])
    labels, speakers = [0, 1, 2, 1, 0, 0], [0, 0, 1, 1, 1, 0]
    together = Scorer(model, chunk=700).batch(recordings, labels, speakers)
    for codes, label, speaker, found in zip(recordings, labels, speakers, together, strict=True):
        alone = Scorer(model).stream(label, speaker)(codes)
        np.testing.assert_allclose(found, alone, atol=2e-4)


def test_a_file_is_scored_at_the_models_rate_and_gain(tmp_path: Path) -> None:
    model = _model(gain=2.0)
    wave = _wave(2.3)
    path = tmp_path / "a.wav"
    soundfile.write(path, (wave * 32768).astype(np.int16), RATE)
    scorer = Scorer(model)
    score = score_file(scorer, path, label="b", speaker="x", floor=True)
    expected = scorer.stream(2, 1)(_codes(np.clip(2 * wave, -1, 1)))
    assert score.bits == pytest.approx(expected.mean(), abs=1e-4)
    assert (score.samples, score.seconds) == (len(wave), 2.3)
    by_second = [expected[i * RATE : (i + 1) * RATE].mean() for i in range(3)]
    np.testing.assert_allclose(score.by_second, by_second, atol=1e-4)
    assert score.floor is not None
    assert 3 < score.floor < 8
    other = tmp_path / "b.wav"
    soundfile.write(other, np.stack([wave, wave], 1), 2 * RATE, subtype="FLOAT")
    assert score_file(scorer, other).samples == pytest.approx(len(wave) / 2, abs=1)


def test_a_gain_by_file_is_found_before_coding(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    wave = 0.05 * _wave(0.5)
    soundfile.write(path, wave, RATE, subtype="PCM_16")
    config = _model(trained_on={"gain": "file"}).config
    codes = np.concatenate(list(coded_blocks(path, config)))
    peak = code("mulaw8").decode(torch.from_numpy(codes)).abs().max()
    assert float(peak) > 0.9
    plain = np.concatenate(list(coded_blocks(path, _model().config)))
    assert code("mulaw8").decode(torch.from_numpy(plain)).abs().max() < 0.05


def test_a_long_file_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    scorer = Scorer(_model(), chunk=4096)
    peaks = []
    for seconds in (10, 60):
        path = tmp_path / f"{seconds}.wav"
        soundfile.write(path, _wave(seconds), RATE, subtype="PCM_16")
        tracemalloc.start()
        for codes in coded_blocks(path, scorer.model.config, block_frames=4096):
            assert len(codes) <= 4096
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_what_cannot_be_scored(tmp_path: Path) -> None:
    scorer = Scorer(_model())
    path = tmp_path / "a.wav"
    soundfile.write(path, np.array([0.1, np.nan, 0.2]), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match=r"a\.wav: sample 1"):
        score_file(scorer, path)
    soundfile.write(path, np.empty(0), RATE)
    with pytest.raises(DataError, match="no samples"):
        score_file(scorer, path)
    soundfile.write(path, _wave(0.1), RATE)
    with pytest.raises(UsageError, match="unknown label 'c'"):
        score_file(scorer, path, label="c")
    with pytest.raises(UsageError, match="precision"):
        Scorer(_model(), precision="double")
