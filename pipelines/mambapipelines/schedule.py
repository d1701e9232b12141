"""Schedules as pure functions of the fraction of the training that is done.

Nothing here has a state, so a resumed training needs nothing but its position.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mambacore.errors import UsageError


def learning_rate_factor(fraction: float, warmup: float, final: float) -> float:
    """Linear from 0 to 1 over `warmup`, then half a cosine down to `final`.

    ``f / w`` for ``f < w``, else ``final + (1 - final) (1 + cos(pi (f - w) / (1 - w))) / 2``.

    Args:
        fraction: how much of the training is done, in [0, 1].
        warmup: where the rise ends, in [0, 1).
        final: the value at the end, in [0, 1).

    >>> [round(learning_rate_factor(f, 0.1, 0.0), 3) for f in (0.05, 0.1, 0.55, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if fraction < warmup:
        return fraction / warmup
    decay = min(1.0, (fraction - warmup) / (1.0 - warmup))
    return final + (1.0 - final) * (1.0 + math.cos(math.pi * decay)) / 2.0


@dataclass(frozen=True)
class Stage:
    """Windows of one length: from which fraction of the training on, how long, how many."""

    start: float
    window: int
    batch: int


def length_stages(window: int, tokens: int, first: int, warmup: float) -> tuple[Stage, ...]:
    """Sequence-length warm-up: each stage doubles the window and halves the batch.

    A step always holds about `tokens` positions. The windows are `window` halved as long as it
    stays at or above `first`; the shorter ones share the fraction `warmup` of the training
    evenly, the full length has the rest.

    Args:
        window: the length to end with.
        tokens: positions a step (and a device); a stage's batch is at least 1.
        first: the shortest window to start with.
        warmup: fraction of the training before the full length, in [0, 1).

    >>> [(s.start, s.window, s.batch) for s in length_stages(1024, 8192, 256, 0.5)]
    [(0.0, 256, 32), (0.25, 512, 16), (0.5, 1024, 8)]
    >>> [s.window for s in length_stages(1024, 8192, 1024, 0.5)]
    [1024]
    """
    if window < 1 or tokens < 1 or first < 1 or not 0 <= warmup < 1:
        raise UsageError(
            f"length warm-up of window {window}, tokens {tokens}, first window {first} and "
            f"fraction {warmup}: the first three must be positive, the fraction in [0, 1)."
        )
    windows = [window]
    while warmup > 0 and windows[-1] // 2 >= first:
        windows.append(windows[-1] // 2)
    windows.reverse()
    short = len(windows) - 1
    return tuple(
        Stage(warmup * i / short if short else 0.0, length, max(1, tokens // length))
        for i, length in enumerate(windows)
    )


def stage_at(stages: Sequence[Stage], fraction: float) -> Stage:
    """The stage that a fraction of the training falls in."""
    return stages[bisect.bisect_right([s.start for s in stages], fraction) - 1]


@dataclass
class Pace:
    """How far the training is: ``max(step / max_steps, seconds / max_seconds)``, at most 1.

    Without `max_seconds` this is a pure function of the step. With it, the clock's readings
    (`tick`) are kept with the step they were taken at, and a step sees only readings at least
    `lag` steps old: a batch that is prepared ahead of time, on whatever rank and also after a
    resume, gets the same answer as one that is prepared on time.

    Args:
        max_steps: optimiser steps in all.
        max_seconds: training time in all, or None.
        lag: how many steps ahead of the training a batch may be prepared.

    >>> Pace(100).fraction(25)
    0.25
    >>> pace = Pace(100, max_seconds=60.0, lag=2)
    >>> pace.tick(5, 30.0)
    >>> pace.fraction(6), pace.fraction(7)
    (0.06, 0.5)
    """

    max_steps: int
    max_seconds: float | None = None
    lag: int = 0
    _readings: list[tuple[int, float]] = field(default_factory=list)

    def tick(self, step: int, elapsed: float) -> None:
        """Note that `elapsed` seconds of training had passed when `step` began."""
        if self.max_seconds is None:
            return
        self._readings.append((step, float(elapsed)))
        # Enough for any batch under way, with room for ranks that tick rarely.
        while len(self._readings) > 2 and self._readings[1][0] <= step - 4 * self.lag - 64:
            self._readings.pop(0)

    def fraction(self, step: int) -> float:
        """The fraction of the training that is done when optimiser step `step` (from 0) begins."""
        done = step / self.max_steps
        if self.max_seconds is not None:
            # (s, inf) sorts after every reading of step s.
            last = bisect.bisect_right(self._readings, (step - self.lag, math.inf)) - 1
            if last >= 0:
                done = max(done, self._readings[last][1] / self.max_seconds)
        return min(1.0, done)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"readings": [list(reading) for reading in self._readings]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._readings = [(int(step), float(elapsed)) for step, elapsed in state["readings"]]
