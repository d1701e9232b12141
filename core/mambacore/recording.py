"""Recording CUDA graphs: what has to run before one can be recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

_T = TypeVar("_T")


def aside(work: Callable[[], _T], times: int = 1, device: torch.device | None = None) -> _T:
    """Run `work` some times on a stream of its own, and let the current stream wait for it.

    A first run compiles kernels and allocates workspaces, which a recording cannot; on the current
    stream it would leave gradients' accumulation tied to a stream that a recording may not touch
    (PyTorch, CUDA semantics, "CUDA graphs"). Needs a GPU: the current one, or `device`.

    Returns:
        What the last run returned. Tensors of it that are kept need ``record_stream``.
    """
    if times < 1:
        raise ValueError(f"times is {times}; give at least 1")
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(times - 1):
            work()
        result = work()
    current.wait_stream(side)
    return result
