"""Forward and backward pass of a loss, recorded once as CUDA graphs and replayed at every step.

A model of many small layers keeps a GPU waiting for Python: launching its kernels takes longer than
running them. A replay launches them all at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# Each shape is recorded by itself; a training whose batches have many more is not sped up by it.
MOST_SHAPES = 24


class ReplayedLoss:
    """``(*tensors) -> (loss, *figures)``; on a GPU by replaying CUDA graphs, one pair a shape.

    Gradients flow to the parameters as usual; random numbers (dropout) are new at each call and
    follow the seed. The first call of a shape runs some times and is recorded, which takes a second
    or two. The graphs share their memory, so that it is that of the largest shape.

    Args:
        make: builds the loss, a module whose forward takes the tensors of a batch and returns the
            loss (a scalar) and figures without gradients. It may not wait for the device, nor
            depend on Python values that change. Called once a shape; parameters are shared.

    Attributes:
        enabled: whether to replay at all; False, as it begins, calls the loss plainly.
        refused: why recording failed, if it did; from then on losses are called plainly.

    Gradients of several calls may not be accumulated: a parameter's gradient lies in the graph's
    memory, and the next call overwrites it.

    >>> from torch.nn import functional
    >>> class Loss(nn.Module):
    ...     def __init__(self, model):
    ...         super().__init__()
    ...         self.model = model
    ...     def forward(self, x, y):
    ...         loss = functional.mse_loss(self.model(x), y)
    ...         return loss, loss.detach().sqrt()
    >>> model = nn.Linear(3, 1)
    >>> loss = ReplayedLoss(lambda: Loss(model))
    >>> value, root = loss(torch.ones(2, 3), torch.zeros(2, 1))
    >>> value.requires_grad, root.requires_grad
    (True, False)
    """

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self._make = make
        self._plain: nn.Module | None = None
        self._recorded: dict[Any, Callable[..., tuple[Tensor, ...]]] = {}
        self._pool: Any = None
        self.enabled = False
        self.refused = ""

    @property
    def shapes(self) -> int:
        """Shapes that are replayed."""
        return len(self._recorded)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The loss and the figures, in memory of their own."""
        if not self.enabled or self.refused or not inputs[0].is_cuda:
            return self._call_plainly(inputs)
        key = tuple((tuple(value.shape), value.dtype) for value in inputs)
        call = self._recorded.get(key)
        if call is None:
            if len(self._recorded) == MOST_SHAPES:
                return self._call_plainly(inputs)
            call = self._record(inputs)
            if call is None:
                return self._call_plainly(inputs)
            self._recorded[key] = call
        # The next replay overwrites what this one returned.
        loss, *figures = call(*inputs)
        return loss.clone(), *(figure.detach().clone() for figure in figures)

    def clear(self) -> None:
        """Forget the recordings and give their memory back."""
        self._recorded, self._pool, self._plain = {}, None, None

    def _call_plainly(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self._plain is None:
            self._plain = self._make().train()
        return self._plain(*inputs)

    def _record(self, inputs: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]] | None:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        module = _Uncached(self._make()).train()
        buffers = tuple(value.clone() for value in inputs)
        numbers = torch.cuda.get_rng_state()
        try:
            # What autocast remembers between calls would be lost with the recording.
            with torch.autocast("cuda", enabled=False):
                recorded: Any = torch.cuda.make_graphed_callables(
                    module, buffers, allow_unused_input=True, pool=self._pool
                )
                return recorded
        except RuntimeError as error:
            self.refused = str(error).splitlines()[0]
            torch.cuda.synchronize()
            warnings.warn(f"the step is not replayed as a CUDA graph: {self.refused}", stacklevel=3)
            return None
        finally:
            # A step has the same random numbers whether its shape is new or not.
            torch.cuda.set_rng_state(numbers)


class _Uncached(nn.Module):
    """A module under the autocast that it was made under, without its cache of cast weights."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._enabled = torch.is_autocast_enabled("cuda")
        self._dtype = torch.get_autocast_dtype("cuda")

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cuda", dtype=self._dtype, enabled=self._enabled, cache_enabled=False):
            return self.module(*inputs)
