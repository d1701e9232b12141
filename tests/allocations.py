"""What the CPU allocator hands out: bytes that some code leaves alive, and the most at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile


class Allocated(NamedTuple):
    """result: of the call. left: bytes alive after it, beyond those before; peak: the most."""

    result: Any
    left: int
    peak: int


def allocated(call: Callable[[], Any]) -> Allocated:
    """Run `call` and count every allocation and release of PyTorch's CPU allocator in it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        result = call()
    kineto = run.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    events = [event for event in kineto.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return Allocated(result, now, peak)
