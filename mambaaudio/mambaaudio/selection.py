"""Recordings that go on, half second by half second, as one of several candidates.

What a model draws, it hears: over a minute small errors add up, and sound swells to a dense
texture, dies down, or holds one tone. Its likelihood hardly notices, but half a second shows it.
So several are drawn side by side from one state, and the recording goes on as one that is near to
the prompt's level and not what the two seconds before were.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mambaaudio.engines import Drawn, Engine
from mambaaudio.guard import BINS, likeness, spectra
from mambacore.errors import UsageError

SECONDS = 0.5
# Four half seconds; real piano is more alike to them in one of twenty.
_PAST = 4
_ALIKE = 0.9
# An octave of level counts as much as this likeness beyond.
_OCTAVE = 1 / 30
# Full scale is 1. What is silent still has a level to compare, below half a step of 16 bits.
_FLOOR = 1e-5

Waves = Sequence[NDArray[np.floating]]


class Chooser:
    """Chooses the candidates that go on.

    The one of least |log2(RMS / prompt's RMS)| + 30 max(0, likeness - .9); of equal ones the first.
    Its likeness is the cosine of its mean power spectrum with that of the four stretches before
    (normalised each, so that quiet ones count as much): a drone or a dense texture comes to .99.

    Args:
        prompts: (n, samples) what each recording goes on from, or (1, samples) for all; in the
            unit of the waveforms.
        recordings: how many are made.
        candidates: of each.

    Raises:
        UsageError: a silent prompt, which has no level; its row is named.

    >>> choice = Chooser(np.array([[0.1, -0.1]]), recordings=1, candidates=3)
    >>> choice.choose([np.full(4096, level) for level in (0.4, 0.09, 0.11)]).tolist()
    [2]
    """

    def __init__(self, prompts: NDArray[np.floating], recordings: int, candidates: int) -> None:
        # A code's symbol for 0 may stand for a little more.
        silent = np.flatnonzero(np.ptp(prompts, axis=1) == 0)
        if len(silent):
            which = "the prompt" if len(prompts) == 1 else f"the prompt of row {silent[0]}"
            raise UsageError(
                f"{which} is digital silence, so candidates have no level to keep; choose another "
                "stretch (prompt_start, prompt_seconds), or leave candidates at 1"
            )
        self._level = np.broadcast_to([_level(prompt) for prompt in prompts], recordings)
        self._past = [deque([np.zeros(BINS)], _PAST) for _ in range(recordings)]
        self.candidates = candidates

    def choose(self, waveforms: Waves) -> NDArray[np.int64]:
        """Rows (recordings,) of those in `waveforms`, (n,) each, candidates of one side by side.

        A row that ended before is empty, and stays behind as long as others go on.
        """
        chosen = []
        for number, (level, past) in enumerate(zip(self._level, self._past, strict=True)):
            first = number * self.candidates
            own = waveforms[first : first + self.candidates]
            power, before = [spectra(wave).mean(0) for wave in own], np.sum(past, axis=0)
            costs = [
                (
                    not len(wave),
                    abs(np.log2((_level(wave) + _FLOOR) / (level + _FLOOR)))
                    + max(0.0, likeness(mean, before) - _ALIKE) / _OCTAVE,
                )
                for wave, mean in zip(own, power, strict=True)
            ]
            best = min(range(self.candidates), key=costs.__getitem__)
            past.append(power[best] / (np.linalg.norm(power[best]) or 1.0))
            chosen.append(first + best)
        return np.array(chosen, np.int64)


class SelectingEngine:
    """Continues recordings, each as one of several rows of another engine.

    Args:
        engine: whose rows are the candidates, those of a recording neighbours.
        choice: chooses.
        decoded: samples of each row of symbols.
        first, interval: symbols up to the first choice, and between two: both end where the
            slowest level begins a frame.
    """

    def __init__(
        self,
        engine: Engine,
        choice: Chooser,
        decoded: Callable[[NDArray[np.int64]], Waves],
        first: int,
        interval: int,
    ) -> None:
        self._engine, self._choice, self._decoded = engine, choice, decoded
        self._due, self._interval = first, interval
        self._ahead: list[Drawn] = []

    def run(self, count: int) -> Drawn:
        """The next symbols (recordings, count) and their log-probabilities; see `Engine`."""
        while sum(symbols.shape[1] for symbols, _ in self._ahead) < count:
            symbols, logs = self._engine.run(self._due)
            rows = self._choice.choose(self._decoded(symbols))
            self._engine.keep(rows.repeat(self._choice.candidates))
            self._ahead.append((symbols[rows], logs[rows]))
            self._due = self._interval
        symbols, logs = (np.concatenate(parts, 1) for parts in zip(*self._ahead, strict=True))
        self._ahead = [(symbols[:, count:], logs[:, count:])]
        return symbols[:, :count], logs[:, :count]


def _level(wave: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.square(wave, dtype=np.float64).mean())) if len(wave) else 0.0
