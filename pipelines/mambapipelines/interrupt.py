"""Ctrl-C and SIGTERM: one exception, and a flag for work that must finish its step first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupted(BaseException):
    """The user (SIGINT) or the system (SIGTERM) asked to stop. `code` is the exit code.

    Not `KeyboardInterrupt`, which Lightning turns into exit code 1.
    """

    def __init__(self, signum: int, note: str = "") -> None:
        super().__init__(note)
        self.signum = signum
        self.note = note

    @property
    def code(self) -> int:
        """128 + the signal's number: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + int(self.signum)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _raise(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM raise `Interrupted` at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        if previous[number] is not signal.SIG_IGN:
            signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StopFlag:
    """Remembers the first signal; a second one raises `Interrupted` at once.

    `install` replaces the handlers (Lightning's own ones too), `remove` restores them.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._previous: dict[int, object] = {}

    def install(self) -> None:
        """From now on signals set the flag."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            previous = signal.getsignal(number)
            if previous is not signal.SIG_IGN:
                self._previous[number] = previous
                signal.signal(number, self._note)

    def remove(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._previous = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            raise Interrupted(signum, "stopped without saving, at the second signal")
        self.signum = signum


def ignore_in_worker(worker: int) -> None:
    """For data-loading workers: a Ctrl-C reaches the whole process group, and only the main
    process may answer it. Workers end when the main process tells them or dies."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
