"""Launching a kernel again without asking Triton again which compiled version it needs.

That question costs tens of microseconds of Python for a kernel of forty arguments: more than a
short scan takes on the GPU. A caller that can say when two launches need the same version, by
`key`, is asked only once.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

MOST = 4096  # versions remembered; every new length of a sequence is one


class Launcher:
    """One kernel and its compiled versions."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._versions: dict[Hashable, Any] = {}

    def __call__(self, key: Hashable, programs: int, arguments: Sequence, **options) -> None:
        """Launch on a grid of `programs`; arguments: all of the kernel's, in its order."""
        version = self._versions.get(key)
        if version is not None:
            version[(programs, 1, 1)](*arguments)
            return
        version = self._kernel[(programs,)](*arguments, **options)
        if version is not None:  # the interpreter compiles nothing
            if len(self._versions) >= MOST:
                self._versions.clear()
            self._versions[key] = version
