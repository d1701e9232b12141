"""Figures of music on signals whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mambaaudio.music import chroma_entropy, figures, onset_times, rms_by_second
from mambaaudio.synth import melody, pluck
from mambacore.errors import DataError

RATE = 16_000


def _sine(frequency: float, seconds: float, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)


def test_noise_and_a_tone_are_the_ends_of_flatness() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 8 * RATE)
    assert figures(noise, RATE).flatness == pytest.approx(0.56, abs=0.02)
    assert figures(_sine(440, 4), RATE).flatness < 1e-3


def test_level_is_relative_to_the_prompt() -> None:
    wave = np.concatenate([_sine(440, 2, 0.5), _sine(440, 2, 0.05), np.zeros(RATE // 2)])
    found = figures(wave, RATE, prompt=_sine(440, 1, 0.5))
    np.testing.assert_allclose(found.relative_rms, [1, 1, 0.1, 0.1], rtol=1e-3)
    np.testing.assert_allclose(rms_by_second(wave, RATE)[0], 0.5 / np.sqrt(2), rtol=1e-3)
    assert found.to_dict()["relative_rms_min"] == pytest.approx(0.1, rel=1e-3)


def test_onsets_are_counted_where_they_are() -> None:
    random = np.random.default_rng(0)
    starts = np.array([0.5, 1.1, 1.5, 2.6, 3.3, 4.2])
    wave = np.zeros(5 * RATE)
    for start in starts:
        note = pluck(random.uniform(200, 800), 5, RATE, random)  # rings on: no click at its end
        at = round(start * RATE)
        wave[at : at + len(note)] += note[: len(wave) - at]
    wave += random.normal(0, 1e-4, len(wave))
    found = onset_times(wave, RATE)
    assert len(found) == len(starts)
    assert np.abs(found - starts).max() < 0.07
    assert figures(wave, RATE).onsets == pytest.approx(12)
    assert len(onset_times(_sine(440, 5), RATE)) <= 1


def test_chroma_entropy_tells_a_note_from_a_scale() -> None:
    drone = figures(_sine(440, 5) + 0.3 * _sine(880, 5), RATE).chroma_entropy
    scale = np.concatenate([_sine(440 * 2 ** (k / 12), 0.5) for k in range(12)])
    assert drone < 0.3
    assert figures(scale, RATE).chroma_entropy == pytest.approx(np.log2(12), abs=0.15)
    assert chroma_entropy(np.zeros((3, 1025)), RATE) == 0


def test_too_short_or_not_finite() -> None:
    with pytest.raises(DataError, match="at least one second"):
        figures(np.zeros(100), RATE)
    with pytest.raises(DataError, match="finite"):
        figures(np.full(RATE, np.nan), RATE)


def test_music_lies_between_a_drone_and_noise() -> None:
    found = figures(melody(8, RATE, np.random.default_rng(0)), RATE)
    assert found.flatness < 0.1
    assert 10 < found.onsets < 60
    assert found.chroma_entropy > 1


def test_real_pieces_stay_below_the_stated_flatness(shared_data: Path) -> None:
    path = shared_data / "audio" / "piano" / "MAPS_MUS-scn15_12_ENSTDkCl.flac"
    wave, rate = soundfile.read(path, dtype="float32")
    found = figures(wave[: 60 * rate], rate)
    assert found.flatness < 0.003
    assert 3 < found.onsets < 80
    assert 2 < found.chroma_entropy < 3.58
