"""Synthesised notes: something real enough to learn from, made anywhere in a second.

Plucked strings after Karplus and Strong (1983, Computer Music Journal 7(2)) and steady tones with
partials, each with its own random state, so that no two takes are equal.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mambaaudio.writer import WaveformWriter
from mambacore.cache import atomic_write
from mambacore.errors import UsageError

Instrument = Literal["string", "tone"]
# A minor pentatonic from A3: any two of them go together.
PITCHES = {"A3": 220.0, "C4": 261.63, "D4": 293.66, "E4": 329.63, "G4": 392.0}


def pluck(
    frequency: float, seconds: float, rate: int, random: np.random.Generator, damping: float = 0.996
) -> NDArray[np.float32]:
    """A plucked string: a loop of noise that is averaged each time round.

    ``y_t = damping (y_{t-N} + y_{t-N-1}) / 2``, N the period in samples.

    Args:
        frequency: in Hz, below half the rate. seconds: above 0. rate: in Hz.
        random: of the pluck. damping: of a round, at most 1.

    >>> pluck(220.0, 0.5, 8000, np.random.default_rng(0)).shape
    (4000,)
    """
    _check(frequency, seconds, rate)
    length, period = round(seconds * rate), max(2, round(rate / frequency))
    noise = random.uniform(-1, 1, period)
    rounds = [noise]
    last = 0.0
    while len(rounds) * period < length:
        before = np.concatenate([[last], rounds[-1][:-1]])
        last = rounds[-1][-1]
        rounds.append(damping * (rounds[-1] + before) / 2)
    wave = np.concatenate(rounds)[:length]
    return (0.8 * wave / np.abs(wave).max()).astype(np.float32)


def tone(
    frequency: float, seconds: float, rate: int, random: np.random.Generator, partials: int = 6
) -> NDArray[np.float32]:
    """A held tone: partials of falling strength with random phases, a soft start and end.

    >>> tone(220.0, 0.5, 8000, np.random.default_rng(0)).shape
    (4000,)
    """
    _check(frequency, seconds, rate)
    time = np.arange(round(seconds * rate)) / rate
    wave = np.zeros_like(time)
    for k in range(1, partials + 1):
        if k * frequency < 0.45 * rate:
            phase = random.uniform(0, 2 * np.pi)
            wave += np.sin(2 * np.pi * k * frequency * time + phase) / k**1.5
    attack = np.minimum(1.0, time / 0.02)
    release = np.minimum(1.0, (seconds - time) / 0.05)
    wave *= attack * release
    return (0.6 * wave / np.abs(wave).max()).astype(np.float32)


def _check(frequency: float, seconds: float, rate: int) -> None:
    if not (0 < frequency < rate / 2 and seconds > 0):
        raise UsageError(
            f"a note of {frequency} Hz and {seconds} s at {rate} samples/s: the frequency must lie "
            "between 0 and half the rate, the duration above 0"
        )


def write_notes(
    folder: str | os.PathLike[str],
    *,
    rate: int = 8000,
    seconds: float = 0.4,
    takes: int = 6,
    seed: int = 0,
) -> Path:
    """Write single notes as WAV files and their sample sheet: label = pitch, speaker = instrument.

    The last of three or more takes is for test, the one before it for validation.

    Args:
        folder: made where missing. rate: in Hz. seconds: of a note, varied by a fifth either way.
        takes: files a pitch and instrument. seed: of all random numbers.

    Returns:
        The sheet, ``folder/sheet.tsv``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    rows = ["path\tlabel\tspeaker\tsplit"]
    for pitch, frequency in PITCHES.items():
        for instrument, play in (("string", pluck), ("tone", tone)):
            for take in range(takes):
                long = seconds * random.uniform(0.8, 1.2)
                wave = play(frequency, long, rate, random) * np.float32(random.uniform(0.5, 1.0))
                name = f"{pitch}_{instrument}_{take}.wav"
                with WaveformWriter(folder / name, rate) as writer:
                    writer.write(wave)
                split = "train"
                if takes >= 3:
                    split = {takes - 1: "test", takes - 2: "val"}.get(take, "train")
                rows.append(f"{name}\t{pitch}\t{instrument}\t{split}")
    with atomic_write(folder / "sheet.tsv", "w") as file:
        file.write("\n".join(rows) + "\n")
    return folder / "sheet.tsv"


def melody(
    seconds: float,
    rate: int,
    random: np.random.Generator,
    *,
    instrument: Instrument = "string",
    beat: float = 0.25,
) -> NDArray[np.float32]:
    """Notes of the scale one after the other, each ringing on under the next ones.

    >>> melody(1.0, 8000, np.random.default_rng(0)).shape
    (8000,)
    """
    length = round(seconds * rate)
    wave = np.zeros(length, np.float32)
    pitches = list(PITCHES.values())
    play = pluck if instrument == "string" else tone
    place, position = int(random.integers(len(pitches))), 0
    while position < length:
        note = play(pitches[place], 4 * beat, rate, random) * np.float32(random.uniform(0.3, 0.6))
        end = min(length, position + len(note))
        wave[position:end] += note[: end - position]
        position += round(beat * rate * int(random.integers(1, 3)))
        # Small steps, as melodies mostly take.
        place = int(np.clip(place + random.integers(-2, 3), 0, len(pitches) - 1))
    return np.clip(wave, -1, 1)


def write_melodies(
    folder: str | os.PathLike[str],
    *,
    rate: int = 8000,
    seconds: float = 20.0,
    files: int = 6,
    seed: int = 0,
    instrument: Instrument = "string",
) -> Path:
    """Write melodies as WAV files (no labels, no sheet); returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(files):
        with WaveformWriter(folder / f"melody_{number}.wav", rate) as writer:
            writer.write(melody(seconds, rate, random, instrument=instrument))
    return folder
