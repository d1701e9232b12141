"""Cross entropy of a language model whose logits never stand whole.

At a million positions the float32 logits of a byte vocabulary take a gibibyte, and their softmax
and gradient as much again. Here a chunk of positions at a time goes through the head, in the
forward pass and once more in the backward pass; between the two nothing is kept but the arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mambacore.errors import UsageError
from mambacore.precision import accumulate_dtype

if TYPE_CHECKING:
    from mambacore.parallel import SequenceGroup

_LOGITS_AT_ONCE = 1 << 22


class LossSum(NamedTuple):
    """A sum of losses and over how many positions: what chunks, segments and ranks add up.

    total: scalar, nats, float32 (float64 in a float64 model), differentiable.
    counted: scalar int64, positions that counted.
    """

    total: Tensor
    counted: Tensor

    def mean(self) -> Tensor:
        """Nats a counted position; 0 where none counts."""
        return self.total / self.counted.clamp(min=1)

    def over(self, group: SequenceGroup | None) -> LossSum:
        """The sum over all parts of a sequence that several processes hold: the same on each."""
        if group is None or group.size == 1:
            return self
        counted = sum(part[0] for part in group.exchange(self.counted))
        return LossSum(group.sum(self.total), torch.as_tensor(counted))


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    chunk: int | None = None,
) -> LossSum:
    """Sum over positions of ``-log softmax(hidden weight^T)[target]``.

    Equals `torch.nn.functional.cross_entropy` of the whole logits with ``reduction="sum"``, value
    and gradients, to the rounding of a sum in another order. Memory beyond the arguments and
    their gradients: a few times chunk x V. The same inputs give the same bits. Under autocast the
    products are made in its dtype, softmax and sums in float32.

    Args:
        hidden: (..., d) vectors that the head reads.
        weight: (V, d) the head's rows.
        targets: (...) integers of any dtype, 0 to V - 1 where they count.
        mask: (...) bool, True where a position counts; None counts all. Elsewhere the target may
            be anything.
        chunk: positions at a time; by default such that chunk x V is about four million.

    Returns:
        The sum and the count, both zero when nothing counts.

    Raises:
        UsageError: shapes or dtypes that do not go together; on the CPU, a target out of range.

    >>> hidden, weight = torch.randn(2, 5, 8), torch.randn(4, 8)
    >>> targets = torch.randint(4, (2, 5))
    >>> loss = chunked_cross_entropy(hidden, weight, targets, chunk=3)
    >>> plain = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten())
    >>> int(loss.counted), torch.allclose(loss.mean(), plain)
    (10, True)
    """
    _check(hidden, weight, targets, mask, chunk)
    vocabulary = weight.shape[0]
    if mask is None:
        # Made on the device: a recorded step cannot copy from the host.
        count = torch.full((), targets.numel(), device=hidden.device)
    else:
        count = mask.sum()
        targets = torch.where(mask, targets, 0)
        mask = mask.flatten()
    targets = targets.flatten()
    # On a GPU the check would wait for the device; there the look-up itself fails.
    if targets.device.type == "cpu" and targets.numel() and not torch.compiler.is_compiling():
        low, high = (int(value) for value in targets.aminmax())
        if low < 0 or high >= vocabulary:
            raise UsageError(
                f"target {low if low < 0 else high} counts in the loss but is not in the "
                f"vocabulary, 0 to {vocabulary - 1}; leave it out with mask"
            )
    chunk = chunk or max(1, _LOGITS_AT_ONCE // vocabulary)
    flat = hidden.reshape(-1, hidden.shape[-1])
    total: Any = _ChunkedCrossEntropy.apply(
        flat, weight, targets, mask, chunk, _product_dtype(hidden, weight)
    )
    return LossSum(total, count)


def _check(
    hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor | None, chunk: int | None
) -> None:
    if weight.dim() != 2 or hidden.dim() < 1 or hidden.shape[-1] != weight.shape[1]:
        raise UsageError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be (..., d) and "
            "(vocabulary, d)"
        )
    if targets.shape != hidden.shape[:-1] or targets.is_floating_point():
        raise UsageError(
            f"targets must be integers of shape {tuple(hidden.shape[:-1])}, not "
            f"{tuple(targets.shape)} of {targets.dtype}"
        )
    if mask is not None and (mask.shape != targets.shape or mask.dtype != torch.bool):
        raise UsageError(
            f"mask must be bool of shape {tuple(targets.shape)}, not {tuple(mask.shape)} of "
            f"{mask.dtype}"
        )
    if chunk is not None and chunk < 1:
        raise UsageError(f"chunk must be at least 1, not {chunk}")


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What a linear layer would compute in here."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(hidden.dtype, weight.dtype)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """hidden (n, d), weight (V, d), targets (n,), mask (n,) or None -> scalar sum."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        mask: Tensor | None,
        chunk: int,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets, mask)
        ctx.chunk, ctx.dtype = chunk, dtype
        head = weight.to(dtype)
        total = hidden.new_zeros((), dtype=accumulate_dtype(dtype))
        with torch.autocast(hidden.device.type, enabled=False):
            for at in range(0, len(hidden), chunk):
                part = slice(at, at + chunk)
                logits = _logits(hidden[part], head)
                loss = F.cross_entropy(logits, targets[part].long(), reduction="none")
                if mask is not None:
                    loss = loss.masked_fill(~mask[part], 0.0)
                total = total + loss.sum()
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator's type
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, mask = ctx.saved_tensors
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        head = weight.to(ctx.dtype)
        d_hidden = torch.empty_like(hidden) if for_hidden else None
        d_weight = None
        if for_weight:
            d_weight = torch.zeros_like(weight, dtype=accumulate_dtype(ctx.dtype))
        ids = torch.arange(len(weight), device=hidden.device, dtype=targets.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for at in range(0, len(hidden), ctx.chunk):
                part = slice(at, at + ctx.chunk)
                # softmax - one-hot
                slope = _logits(hidden[part], head).softmax(-1)
                slope = slope - (targets[part, None] == ids).to(slope.dtype)
                if mask is not None:
                    slope = slope.masked_fill(~mask[part, None], 0.0)
                slope = (slope * gradients[0]).to(ctx.dtype)
                if d_hidden is not None:
                    d_hidden[part] = slope @ head
                if d_weight is not None:
                    d_weight += slope.t() @ hidden[part].to(ctx.dtype)
        if d_weight is not None:
            d_weight = d_weight.to(weight.dtype)
        return d_hidden, d_weight, None, None, None, None


def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    logits = F.linear(hidden.to(head.dtype), head)
    return logits.to(accumulate_dtype(head.dtype))
