"""Launching again what was launched before for a problem of the same kind, with other addresses.

Asking Triton which compiled version a kernel of forty arguments needs costs tens of microseconds
of Python, and putting the arguments together not much less: more than a short scan takes on the
GPU. So the first call of a kind is recorded (`Recording`), and the next ones only fill in the
addresses of their tensors (`Plan`). What makes two calls of one kind is the caller's to say, by the
key that it remembers a plan under.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import triton
from torch import Tensor

# How a compiled version is started is Triton's own affair, known for this release. Others are
# started by their public method, which looks up the stream and checks every pointer.
_DIRECT = triton.__version__.startswith("3.6.")
_ALIGNED = 32  # numbers: what Triton may assume of an address, and more


class Plan(NamedTuple):
    """The launches of a call. Scratch memory is one piece of `scratch` numbers.

    offsets: of the scratch tensors in it, in bytes. constants: all other arguments but tensors.
    launches: (what starts it, programs, function, its description, how to pick its arguments from
    addresses, scratch addresses and constants).
    """

    scratch: int
    offsets: tuple[int, ...]
    constants: tuple[Any, ...]
    launches: tuple[tuple[Any, int, Any, Any, itemgetter], ...]

    def run(self, stream: int, addresses: Sequence[int | None], like: Tensor) -> None:
        """addresses: of the tensors that the recording was told of, in that order."""
        memory = None
        if self.scratch:
            memory = like.new_empty(self.scratch)
            start = memory.data_ptr()
            pool = (*addresses, *[start + offset for offset in self.offsets], *self.constants)
        else:
            pool = (*addresses, *self.constants)
        for start, programs, function, description, pick in self.launches:
            if _DIRECT:
                start(
                    programs, 1, 1, stream, function, description, None, None, None, *pick(pool)
                )  # fmt: skip
            else:
                start[(programs, 1, 1)](*pick(pool))


class Recording:
    """One call as it runs. like: gives dtype and device of the scratch memory."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._scratch: list[Tensor] = []
        self._launches: list[tuple[Any, int, Sequence]] = []

    def empty(self, *shape: int) -> Tensor:
        """Memory that nobody wants after the call."""
        self._scratch.append(self._like.new_empty(shape))
        return self._scratch[-1]

    def launch(self, kernel: Any, programs: int, arguments: Sequence, **options) -> None:
        """Run a kernel on a grid of `programs`; arguments: all of the kernel's, in its order."""
        version = kernel[(programs,)](*arguments, **options)
        self._launches.append((version, programs, arguments))

    def plan(self, tensors: Sequence[Tensor | None]) -> Plan | None:
        """The call without its tensors, which are these and the scratch memory.

        None where it cannot be repeated: the interpreter compiles nothing, and a tensor given for
        two arguments does not tell whose address to take.
        """
        known = [*tensors, *self._scratch]
        places = {id(t): place for place, t in enumerate(known) if t is not None}
        if len(places) < sum(t is not None for t in known):
            return None
        constants: list[Any] = []
        launches = []
        for version, programs, arguments in self._launches:
            if version is None:
                return None
            slots = []
            for argument in arguments:
                if isinstance(argument, Tensor):
                    slots.append(places[id(argument)])
                else:
                    slots.append(len(known) + len(constants))
                    constants.append(argument)
            start, function, description = version, None, None
            if _DIRECT:
                start, function, description = (
                    version.run, version.function, version.packed_metadata,
                )  # fmt: skip
            launches.append((start, programs, function, description, itemgetter(*slots)))
        size, offsets = 0, []
        for t in self._scratch:
            offsets.append(size * t.element_size())
            size += -(-t.numel() // _ALIGNED) * _ALIGNED
        return Plan(size, tuple(offsets), tuple(constants), tuple(launches))


class Plans:
    """Plans by key, forgotten together when there are many: every length of a sequence is one."""

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._plans: dict[Any, Plan] = {}
        self.get = self._plans.get

    def remember(self, key: Any, plan: Plan | None) -> None:
        if plan is None:
            return
        if len(self._plans) >= self._most:
            self._plans.clear()
        self._plans[key] = plan


def stream_of(t: Tensor) -> int:
    """The stream that work on this tensor's device goes to now."""
    if not t.is_cuda:
        return 0
    return triton.runtime.driver.active.get_current_stream(t.get_device())
