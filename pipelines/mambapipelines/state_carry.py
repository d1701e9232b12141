"""Training on sequences longer than memory: segment by segment, the state handed over.

A sequence is cut into segments; each is read from the state that the one before it left. The loss
of a segment sends its gradient back through `reach` segments, itself included:

    reach = 1        the state is handed over without a gradient; memory of one segment.
    1 < reach < n    truncated back-propagation through time; memory of `reach` segments, and each
                     segment is differentiated up to `reach` times.
    reach >= n       the gradient of the whole sequence, exactly, in the memory of one segment and
                     of n states: the states are computed first, then each segment again, from the
                     last to the first, the gradient of its final state coming from the next.

It works on any module with the state contract of `mambacore`: a function of (segment number,
state) that returns a loss and the state after it, where a state is any nesting of tuples, tensors
and None.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mambacore import state as states
from mambacore.errors import UsageError

SegmentLoss = Callable[[int, Any], tuple[Tensor, Any]]
"""``(segment number, state or None) -> (scalar loss, state after the segment)``."""


def carried_loss(
    segment_loss: SegmentLoss, segments: int, reach: int, parameters: Sequence[Tensor]
) -> Tensor:
    """The sum of the segments' losses, with its gradient for the parameters.

    ``carried_loss(...).backward()`` adds to each parameter's gradient as the backward pass of the
    losses themselves would, so optimisers, gradient clipping, accumulation and
    DistributedDataParallel see nothing unusual. The work is done at once: what is left for the
    backward pass is one gradient a parameter. Random numbers (dropout) of a segment are the same
    when it is computed again.

    Args:
        segment_loss: called with 0, 1, ... ``segments - 1``, the first time with state None; its
            losses must not depend on `parameters` but through what they compute.
        segments: how many, at least 1.
        reach: through how many segments a loss is differentiated, itself included; at least 1.
        parameters: tensors that need a gradient. Those that no loss depends on get none.

    Returns:
        A scalar. Without gradients enabled, just the sum.

    Raises:
        UsageError: segments or reach below 1.

    >>> weight = torch.nn.Parameter(torch.tensor(0.5))
    >>> def step(number, state):  # h <- w h + 1, loss h
    ...     h = weight * (1.0 if state is None else state[0]) + 1
    ...     return h, (h,)
    >>> for reach in (1, 3):
    ...     weight.grad = None
    ...     carried_loss(step, 3, reach, [weight]).backward()
    ...     print(weight.grad)
    tensor(4.2500)
    tensor(5.7500)
    """
    if segments < 1 or reach < 1:
        raise UsageError(
            f"{segments} segments with a gradient through {reach}: both must be at least 1"
        )
    if not torch.is_grad_enabled():
        state, losses = None, []
        for number in range(segments):
            loss, state = segment_loss(number, state)
            losses.append(loss)
        return torch.stack(losses).sum()
    wanted = [p for p in parameters if p.requires_grad]
    if segments == 1:
        return segment_loss(0, None)[0]
    total: Any = _Carried.apply(segment_loss, segments, reach, *wanted)
    return total


class _Carried(torch.autograd.Function):
    """Computes loss and gradients in the forward pass; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any, segment_loss: SegmentLoss, segments: int, reach: int, *parameters: Tensor
    ) -> Tensor:
        sums = _Sums(parameters)
        run = _whole if reach >= segments else _truncated
        with torch.enable_grad():
            total = run(segment_loss, segments, reach, sums)
        ctx.given = [g is not None for g in sums.gradients]
        ctx.save_for_backward(*(g for g in sums.gradients if g is not None))
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator's type
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        saved: Iterator[Tensor] = iter(ctx.saved_tensors)
        mine = [next(saved) * gradients[0] if given else None for given in ctx.given]
        return None, None, None, *mine


class _Sums:
    """Gradients of the parameters, added up."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.gradients: list[Tensor | None] = [None] * len(parameters)

    def backward(
        self,
        outputs: Sequence[Tensor],
        given: Sequence[Tensor | None],
        inputs: Sequence[Tensor],
        *,
        keep: bool = False,
    ) -> list[Tensor | None]:
        """Differentiate `outputs`, whose gradients are `given`; those of `inputs` come back."""
        pairs = [
            (o, g) for o, g in zip(outputs, given, strict=True) if o.requires_grad and g is not None
        ]
        if not pairs:
            return [None] * len(inputs)
        found = torch.autograd.grad(
            [o for o, _ in pairs],
            [*self.parameters, *inputs],
            [g for _, g in pairs],
            retain_graph=keep,
            allow_unused=True,
        )
        own = found[: len(self.parameters)]
        for i, gradient in enumerate(own):
            if gradient is not None:
                before = self.gradients[i]
                self.gradients[i] = gradient.detach() if before is None else before + gradient
        return list(found[len(self.parameters) :])


def _fresh(state: Any) -> tuple[Any, list[Tensor]]:
    """The state cut from its history, and those of its tensors that take a gradient."""
    leaves: list[Tensor] = []

    def cut(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if tensor.is_floating_point() or tensor.is_complex():
            leaves.append(tensor.requires_grad_())
        return tensor

    return states.map_tensors(cut, state), leaves


def _differentiable(state: Any) -> list[Tensor]:
    """The same tensors of a state as `_fresh` lists."""
    return [t for t in states.tensors(state) if t.is_floating_point() or t.is_complex()]


def _one(loss: Tensor) -> Tensor:
    return torch.ones_like(loss)


def _truncated(segment_loss: SegmentLoss, segments: int, reach: int, sums: _Sums) -> Tensor:
    total, state = [], None
    # Of each segment within reach: the tensors of the state it began with and of the one it left.
    behind: deque[tuple[list[Tensor], list[Tensor]]] = deque(maxlen=reach - 1)
    for number in range(segments):
        torch.clear_autocast_cache()
        begun, leaves = _fresh(state)
        loss, after = segment_loss(number, begun)
        total.append(loss.detach())
        last = number + 1 == segments
        carried = sums.backward([loss], [_one(loss)], leaves, keep=reach > 1 and not last)
        for place in range(len(behind) - 1, -1, -1):
            earlier, left = behind[place]
            # The oldest segment of a full row leaves it next: its graph is needed no more.
            again = not last and not (place == 0 and len(behind) == reach - 1)
            carried = sums.backward(left, carried, earlier, keep=again)
        behind.append((leaves, _differentiable(after)))
        # What holds a segment's graph is `behind` alone.
        state = states.detach(after)
        del loss, after, begun, leaves, carried
    return torch.stack(total).sum()


def _whole(segment_loss: SegmentLoss, segments: int, reach: int, sums: _Sums) -> Tensor:
    begun: list[Any] = [None]
    randomness = []
    total = []
    with torch.no_grad():
        for number in range(segments - 1):
            # Autocast remembers the weights' casts, and these have no gradient.
            torch.clear_autocast_cache()
            randomness.append(_random_states(sums.parameters))
            loss, state = segment_loss(number, begun[-1])
            begun.append(states.detach(state))
            total.append(loss)
    loss, carried = _again(segment_loss, segments - 1, begun.pop(), None, sums)
    total.append(loss)
    for number in range(segments - 2, -1, -1):
        with _random(randomness.pop(), sums.parameters):
            _, carried = _again(segment_loss, number, begun.pop(), carried, sums)
    return torch.stack(total).sum()


def _again(
    segment_loss: SegmentLoss,
    number: int,
    begun: Any,
    carried: list[Tensor | None] | None,
    sums: _Sums,
) -> tuple[Tensor, list[Tensor | None]]:
    """A segment with its gradient: its loss, and the gradient of the state it began with.

    carried: gradients of the state it leaves; None for the last segment.
    """
    torch.clear_autocast_cache()
    state, leaves = _fresh(begun)
    loss, state = segment_loss(number, state)
    outputs = [] if carried is None else _differentiable(state)
    given = [_one(loss), *(carried or [])]
    return loss.detach(), sums.backward([loss, *outputs], given, leaves)


def _random_states(parameters: Sequence[Tensor]) -> list[Tensor]:
    device = _cuda(parameters)
    found = [torch.get_rng_state()]
    return [*found, torch.cuda.get_rng_state(device)] if device is not None else found


@contextmanager
def _random(saved: list[Tensor], parameters: Sequence[Tensor]) -> Iterator[None]:
    """The random numbers of then, and afterwards those of now."""
    device = _cuda(parameters)
    now = _random_states(parameters)
    for to in (saved, now):
        torch.set_rng_state(to[0])
        if device is not None:
            torch.cuda.set_rng_state(to[1], device)
        if to is saved:
            yield


def _cuda(parameters: Sequence[Tensor]) -> torch.device | None:
    return next((p.device for p in parameters if p.is_cuda), None)
