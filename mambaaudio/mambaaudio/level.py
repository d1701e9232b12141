"""Keeping a continuation from dying down below the level of its prompt.

A model hears what it draws: what is drawn a little too wide makes it expect more width, and sound
swells; too narrow, and it dies down. A core temperature that never changes can only balance the
two, so here it comes nearer to 1 for a row that has become quieter than its prompt. It goes no
further for a louder one: what is drawn almost without noise repeats itself, a single held tone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mambacore.errors import UsageError

_SECONDS = 1.0
_LEAST = 1 / 16


class LevelHold:
    """What each row's 1 / core_temperature - 1 is multiplied by: (level / prompt's level) ** a,
    clipped to 1/16 to 1.

    The prompt's level is its RMS. level^2 is an exponential mean of the squared samples that were
    made, with a time constant of one second, and begins at the prompt's.

    Args:
        exponent: a, how strongly it follows the level; 0 not at all.
        prompts: (rows, n) what each row goes on from, or (1, n) for all; in the unit of the
            waveforms.
        rows: that are made.
        rate: of the samples, in Hz.

    Raises:
        UsageError: a silent prompt, which has no level to hold; its row is named.

    >>> hold = LevelHold(1.0, np.array([[0.1, -0.1]]), rows=2, rate=100)
    >>> hold.factors.tolist()
    [1.0, 1.0]
    >>> hold.update([np.full(1000, 0.2), np.full(1000, 0.001)])
    >>> hold.factors.round(3).tolist()
    [1.0, 0.062]
    """

    def __init__(
        self, exponent: float, prompts: NDArray[np.floating], rows: int, rate: int
    ) -> None:
        # A code's symbol for 0 may stand for a little more.
        silent = np.flatnonzero(np.ptp(prompts, axis=1) == 0)
        if len(silent):
            which = "the prompt" if len(prompts) == 1 else f"the prompt of row {silent[0]}"
            raise UsageError(
                f"{which} is digital silence, so hold_level has no level to hold; choose another "
                "stretch (prompt_start, prompt_seconds), or leave hold_level at 0"
            )
        power = np.square(prompts, dtype=np.float64).mean(axis=1)
        self._exponent, self._memory = exponent, _SECONDS * rate
        self._reference = np.broadcast_to(power, rows)
        self._power = self._reference.copy()

    def update(self, waveforms: Sequence[NDArray[np.floating]]) -> None:
        """The next samples (n,) of every row; fewer, or none, of one that has ended."""
        for row, samples in enumerate(waveforms):
            ages = np.arange(len(samples))[::-1]
            weights = -np.expm1(-1 / self._memory) * np.exp(-ages / self._memory)
            new = np.sum(weights * np.square(samples, dtype=np.float64))
            self._power[row] = np.exp(-len(samples) / self._memory) * self._power[row] + new

    @property
    def factors(self) -> NDArray[np.float64]:
        """(rows,) after all that was made so far."""
        louder = np.sqrt(self._power / self._reference)
        return np.clip(louder**self._exponent, _LEAST, 1.0)
