"""The guard: says what is wrong, keeps quiet about what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mambaaudio import read
from mambaaudio.guard import Guard, flatness, spectra

RATE = 8000
RANDOM = np.random.default_rng(0)
TIME = np.arange(12 * RATE) / RATE


def _notes() -> np.ndarray:
    """A decaying note of another pitch every second."""
    pitch = 220 * 2 ** (np.array([0, 3, 7, 5, 2, 10, 8, 1, 6, 4, 9, 11])[TIME.astype(int)] / 12)
    return (0.3 * np.exp(-3 * (TIME % 1)) * np.sin(2 * np.pi * pitch * TIME)).astype(np.float32)


def _kinds(samples: np.ndarray, reference: float | None = None, piece: int = 700) -> list[str]:
    guard = Guard(RATE, reference)
    pieces = [samples[i : i + piece] for i in range(0, len(samples), piece)]
    return [finding.kind for part in pieces for finding in guard.update(part)]


def test_music_is_left_alone(shared_data: Path) -> None:
    assert _kinds(_notes()) == []
    piece = next(iter(sorted((shared_data / "audio" / "piano").glob("*.flac"))))
    guard = Guard(16000)
    assert guard.update(read(piece, start=16000 * 5, frames=16000 * 40)) == []


def test_each_failure_is_told_from_where_it_begins() -> None:
    notes, quiet = _notes(), np.zeros(4 * RATE)
    noise = RANDOM.normal(0, 0.2, 4 * RATE)
    tone = 0.2 * np.sin(2 * np.pi * 330 * TIME[: 8 * RATE])
    for wrong, kind in ((quiet, "silence"), (noise, "noise"), (tone, "drone")):
        guard = Guard(RATE)
        found = guard.update(np.concatenate([notes[: 3 * RATE], wrong]))
        assert [f.kind for f in found] == [kind]
        assert found[0].start == 3 + (kind == "drone")  # the first second has nothing to be like
        assert kind in str(found[0])
    assert _kinds(np.full(3 * RATE, 0.1)) == ["silence"]  # a constant cannot be heard


def test_loudness_is_judged_by_the_prompts() -> None:
    notes = _notes()
    level = float(np.std(notes))
    assert _kinds(notes, level) == []
    assert _kinds(notes, level / 6) == ["loud"]
    assert _kinds(notes, level * 200) == ["silence"]


def test_flatness_tells_noise_from_tones() -> None:
    assert 0.5 < flatness(spectra(RANDOM.normal(size=RATE))) < 0.6
    assert flatness(spectra(_notes())) < 0.01
    assert flatness(spectra(np.zeros(100))) == 0
