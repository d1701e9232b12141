"""How long a training has been going on."""

from __future__ import annotations

import time


class Clock:
    """Seconds of training, over all resumes."""

    def __init__(self, before: float = 0.0) -> None:
        self._before = before
        self._started: float | None = None

    def start(self) -> None:
        """The training goes on now."""
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds trained so far."""
        return self._before + (time.monotonic() - self._started if self._started else 0.0)
