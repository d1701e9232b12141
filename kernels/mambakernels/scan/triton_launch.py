"""Launching a kernel again without asking Triton again which compiled version it needs.

That question costs tens of microseconds of Python for a kernel of forty arguments: more than a
short scan takes on the GPU. A caller that can say when two launches need the same version, by
`key`, is asked only once.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import triton
from torch import Tensor

MOST = 4096  # versions remembered; every new length of a sequence is one
# How a compiled version is started is Triton's own affair, known for this release. Others are
# started by their public method, which looks up the stream and checks every pointer.
_DIRECT = triton.__version__.startswith("3.6.")


class Launcher:
    """One kernel and its compiled versions."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._versions: dict[Hashable, Any] = {}

    def __call__(
        self, key: Hashable, stream: int, programs: int, arguments: Sequence, **options
    ) -> None:
        """Launch on a grid of `programs`; arguments: all of the kernel's, in its order."""
        version = self._versions.get(key)
        if version is None:
            version = self._kernel[(programs,)](*arguments, **options)
            if version is not None:  # the interpreter compiles nothing
                if len(self._versions) >= MOST:
                    self._versions.clear()
                self._versions[key] = version
        elif _DIRECT:
            plain = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
            version.run(
                programs, 1, 1, stream, version.function, version.packed_metadata,
                None, None, None, *plain,
            )  # fmt: skip
        else:
            version[(programs, 1, 1)](*arguments)


def stream_of(t: Tensor) -> int:
    """The stream that work on this tensor's device goes to now."""
    if not t.is_cuda:
        return 0
    return triton.runtime.driver.active.get_current_stream(t.device.index)
