"""Forward and backward pass of a loss, recorded once as a CUDA graph and replayed at every step.

A model of many small layers keeps a GPU waiting for Python: launching its kernels takes longer than
running them. A replay launches them all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mambacore.errors import UsageError
from mambacore.recording import aside

# Each shape is recorded by itself; the batches of further shapes run as they are.
MOST_SHAPES = 24
_WARM_UP = 3


class ReplayedLoss:
    """``(*tensors) -> (loss, *figures)``; on a GPU by replaying CUDA graphs, one a shape.

    Gradients flow to the parameters as usual; random numbers (dropout) are new at each call and
    follow the seed. The first call of a shape runs some times and is recorded, which takes a second
    or two. The graphs share their memory, so that it is that of the largest shape.

    Args:
        make: builds the loss, a module whose forward takes the tensors of a batch and returns a
            tuple of the loss (a scalar) and figures without gradients. It may not wait for the
            device, nor depend on Python values that change. Parameters are the same in all that
            it builds, and stay where they are.

    Attributes:
        enabled: whether to replay at all; False, as it begins, calls the loss plainly.

    Raises:
        UsageError: something in the loss cannot be recorded.

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
        self._module: nn.Module | None = None
        self._recorded: dict[Any, _Recording] = {}
        self._pool: Any = None
        self.enabled = False

    @property
    def shapes(self) -> int:
        """Shapes that are replayed."""
        return len(self._recorded)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The loss and the figures, in memory of their own."""
        if self._module is None:
            self._module = self._make().train()
        key = tuple((tuple(value.shape), value.dtype) for value in inputs)
        recording = self._recorded.get(key)
        if recording is None:
            full = len(self._recorded) == MOST_SHAPES
            if full or not self.enabled or not inputs[0].is_cuda or not torch.is_grad_enabled():
                return self._module(*inputs)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            recording = self._recorded[key] = _Recording(self._module, inputs, self._pool)
        loss: Any = _Replay.apply(recording, inputs, *recording.parameters)
        # The next replay overwrites what this one computed.
        return loss, *(figure.clone() for figure in recording.figures)

    def clear(self) -> None:
        """Forget the recordings and give their memory back."""
        self._recorded, self._pool, self._module = {}, None, None


class _Recording:
    """A graph that turns its inputs into loss, figures and the gradients of the loss."""

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...], pool: Any) -> None:
        names, self.parameters = zip(
            *((name, p) for name, p in module.named_parameters() if p.requires_grad), strict=True
        )
        self.inputs = tuple(value.clone() for value in inputs)
        # Leaves of their own on the same memory: what autograd still remembers of the parameters
        # belongs to the stream of an earlier step, which a recording may not wait for.
        leaves = tuple(p.detach().requires_grad_() for p in self.parameters)
        cast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")

        def compute() -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor | None, ...]]:
            # What autocast remembers between calls would be lost with the recording.
            with torch.autocast("cuda", cast[1], enabled=cast[0], cache_enabled=False):
                arguments = dict(zip(names, leaves, strict=True))
                loss, *figures = functional_call(module, arguments, self.inputs)
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
            return loss.detach(), tuple(figure.detach() for figure in figures), gradients

        numbers = torch.cuda.get_rng_state()
        with torch.autocast("cuda", enabled=False):
            aside(compute, _WARM_UP)
            self.graph = torch.cuda.CUDAGraph()
            try:
                # The loader's threads may go on with what this thread may not do.
                with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
                    self.loss, self.figures, self.gradients = compute()
            except RuntimeError as error:
                # Neither the device's random numbers nor its memory are as before: no way on.
                raise UsageError(
                    "this step cannot be recorded as a CUDA graph "
                    f"({str(error).splitlines()[0]}): leave out --trainer.cuda_graphs."
                ) from error
        # A step has the same random numbers whether its shape is new or not.
        torch.cuda.set_rng_state(numbers)


class _Replay(torch.autograd.Function):
    """Replays in the forward pass; the backward pass hands out what the graph has computed."""

    @staticmethod
    def forward(
        ctx: Any, recording: _Recording, inputs: tuple[Tensor, ...], *parameters: Tensor
    ) -> Tensor:
        for buffer, value in zip(recording.inputs, inputs, strict=True):
            buffer.copy_(value)
        recording.graph.replay()
        ctx.recording = recording
        return recording.loss.clone()

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        gradients = ctx.recording.gradients
        scaled = iter(torch._foreach_mul([g for g in gradients if g is not None], gradient))
        return None, None, *(None if g is None else next(scaled) for g in gradients)
