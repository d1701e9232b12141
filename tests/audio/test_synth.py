"""Synthesised notes sound at their pitch, and are the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mambaaudio.sheet import load_samples
from mambaaudio.synth import PITCHES, melody, pluck, tone, write_melodies, write_notes
from mambaaudio.waveform import read
from mambacore.errors import UsageError

RATE = 16000


def _pitch(wave: np.ndarray) -> float:
    """From the first peak of the autocorrelation."""
    spectrum = np.abs(np.fft.rfft(wave, 2 * len(wave))) ** 2
    correlation = np.fft.irfft(spectrum)[: RATE // 100]
    correlation[: RATE // 1000] = 0
    return RATE / float(correlation.argmax())


@pytest.mark.parametrize("play", [pluck, tone])
@pytest.mark.parametrize("frequency", [220.0, 392.0])
def test_pitch_and_level(play, frequency: float) -> None:
    wave = play(frequency, 0.5, RATE, np.random.default_rng(1))
    assert wave.shape == (RATE // 2,)
    assert _pitch(wave) == pytest.approx(frequency, rel=0.02)
    assert 0.4 < np.abs(wave).max() <= 1
    with pytest.raises(UsageError, match="half the rate"):
        play(RATE, 0.5, RATE, np.random.default_rng(1))


def test_a_string_fades_and_loses_its_high_partials() -> None:
    wave = pluck(220.0, 2.0, RATE, np.random.default_rng(0))
    first, last = wave[: RATE // 4], wave[-RATE // 4 :]
    assert np.square(last).mean() < 0.1 * np.square(first).mean()
    bright = [np.square(np.diff(part)).mean() / np.square(part).mean() for part in (first, last)]
    assert bright[1] < 0.5 * bright[0]


def test_files_and_their_sheet(tmp_path: Path) -> None:
    sheet = load_samples(write_notes(tmp_path / "a", takes=4))
    assert sheet.labels == tuple(sorted(PITCHES))
    assert sheet.speakers == ("string", "tone")
    splits = [s.split for s in sheet.samples]
    assert [splits.count(s) for s in ("train", "val", "test")] == [20, 10, 10]
    write_notes(tmp_path / "b", takes=4)
    for sample in sheet.samples:
        assert np.array_equal(read(sample.path), read(tmp_path / "b" / sample.path.name))
    folder = write_melodies(tmp_path / "m", seconds=2, files=2)
    waves = [read(path) for path in sorted(folder.glob("*.wav"))]
    assert [len(wave) for wave in waves] == [16000, 16000]
    assert not np.array_equal(*waves)
    assert np.abs(melody(2, RATE, np.random.default_rng(0), instrument="tone")).max() <= 1
