"""A training step recorded once as a CUDA graph and replayed: small models are launch-bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mambacore.optim import parameter_groups
from mambacore.recording import aside


class CapturedStep:
    """Calls ``step(*inputs)``; on a GPU, from the fourth call on, by replaying a CUDA graph.

    The first calls run as they are, on a side stream, so that kernels are compiled and optimiser
    states exist; the next one is recorded. Every call computes what `step` alone would. Inputs are
    copied into buffers that never move, so each call must bring the same shapes and dtypes.

    Args:
        step: forward, backward and update in one, ``step(*tensors) -> tensor`` (a loss, say). On a
            GPU it may not wait for the device nor depend on Python values that change, and its
            optimiser must be capturable (`adamw` makes one).
        warmup: calls before the recording, at least 1.
        capture: False runs every call plainly; None records where the inputs are on a GPU.

    Attributes:
        captured: whether a graph is being replayed.
        refused: why recording failed, if it did; the calls then run plainly.

    The result is overwritten by the next call; clone what is to be kept.
    """

    def __init__(
        self, step: Callable[..., Tensor], *, warmup: int = 3, capture: bool | None = None
    ) -> None:
        self._step = step
        self._left = max(1, warmup)
        self._capture = capture
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._output: Tensor | None = None
        self.refused = ""

    @property
    def captured(self) -> bool:
        """Whether a graph is being replayed."""
        return self._graph is not None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """One step; returns what `step` returned."""
        wanted = self._capture is not False and not self.refused and inputs[0].is_cuda
        if not wanted:
            return self._step(*inputs)
        if self._left:
            self._left -= 1
            return self._aside(*inputs)
        if self._graph is None:
            self._record(inputs)
            if self._graph is None:
                return self._step(*inputs)
        for buffer, value in zip(self._inputs, inputs, strict=True):
            buffer.copy_(value)
        self._graph.replay()
        assert self._output is not None
        return self._output

    def _aside(self, *inputs: Tensor) -> Tensor:
        output = aside(lambda: self._step(*inputs))
        output.record_stream(torch.cuda.current_stream())
        return output

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(value.clone() for value in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._output = self._step(*self._inputs)
        except RuntimeError as error:  # an operation that cannot be recorded
            self.refused = str(error).splitlines()[0]
            torch.cuda.synchronize()
            return
        self._graph = graph


def adamw(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW that a `CapturedStep` can hold, with the house's groups for weight decay.

    On a GPU its learning rate is a tensor there: change it by `set_learning_rate`.
    """
    groups: list[dict[str, Any]] = parameter_groups(model, weight_decay)
    device = next(model.parameters()).device
    if device.type == "cuda":
        rate = torch.tensor(lr, device=device)
        return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=eps, fused=True, capturable=True)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate, in place where it is a tensor that a graph reads."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
