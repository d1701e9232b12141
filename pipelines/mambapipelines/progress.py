"""Progress on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol


def amount(number: float) -> str:
    """A count for people.

    >>> [amount(n) for n in (950, 12_345, 3_400_000, 2_100_000_000)]
    ['950', '12.3 k', '3.4 M', '2.1 G']
    """
    for limit, divisor, unit in ((1e3, 1, ""), (1e6, 1e3, " k"), (1e9, 1e6, " M")):
        if number < limit:
            return f"{number / divisor:.0f}" if divisor == 1 else f"{number / divisor:.1f}{unit}"
    return f"{number / 1e9:.1f} G"


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(42), duration(150), duration(7300)
    ('42s', '2m30s', '2h01m')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress(Protocol):
    """Where progress is shown."""

    def update(self, fraction: float, text: str) -> None:
        """Show that `fraction` is done; `text` has the figures."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def close(self) -> None:
        """Leave the screen tidy."""


class Lines:
    """A plain line every `interval` seconds."""

    def __init__(self, interval: float = 10.0) -> None:
        self._interval = interval
        self._next = 0.0

    def update(self, fraction: float, text: str) -> None:
        """Print a line when it is time."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._interval
            self.say(f"{fraction:4.0%}  {text}")

    def say(self, text: str) -> None:
        """Print a line now."""
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to tidy."""


class Bar:
    """A bar of rich, redrawn at most five times a second."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.percentage:3.0f}%"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True, highlight=False),
            refresh_per_second=5,
            transient=True,
        )
        self._task: Any = None

    def update(self, fraction: float, text: str) -> None:
        """Move the bar."""
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(text, total=1.0)
        self._progress.update(self._task, completed=fraction, description=text)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Take the bar away."""
        if self._task is not None:
            self._progress.stop()
            self._task = None


def make_progress() -> Bar | Lines:
    """A bar when standard error is a terminal, lines otherwise."""
    return Bar() if sys.stderr.isatty() else Lines()
