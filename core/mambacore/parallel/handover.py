"""What a part of a sequence receives from the parts before it: states and the last inputs.

A part turns the state h that enters it into ``decay h + state``. Everyone's pair is gathered, and
each process folds those before its own part (an exclusive scan); the gradients travel the same way
from the last part to the first. A message has (batch, channels, state size) numbers twice,
whatever the length.

Shape suffixes: B batch, L length of the own part, C channels, W convolution width.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from mambacore.parallel.group import SequenceGroup


def carry_state(
    group: SequenceGroup, decay: Tensor, state: Tensor, segment_ids: Tensor | None
) -> Tensor:
    """The state that enters this process's part; differentiable in decay and state.

    Args:
        group: who holds the sequence.
        decay, state: (B, ...) what the own part does to a state, real or complex; decay is 0 in
            rows where a segment changes inside the part.
        segment_ids: (B, L) ids of the own part; None means 0 everywhere.
    """
    return _CarryState.apply(group, decay, state, edges(segment_ids, state))


class _CarryState(torch.autograd.Function):
    @staticmethod
    def forward(ctx, group, decay, state, ends):  # type: ignore[override]
        parts = group.exchange(decay, state, ends)
        kept = continued([part[2] for part in parts])
        carried = torch.zeros_like(state)
        for number in range(group.rank):
            entering = zero_where_not(kept[number], carried)
            carried = parts[number][0] * entering + parts[number][1]
        ctx.group, ctx.kept = group, kept
        carried = zero_where_not(kept[group.rank], carried)
        decays = [
            zero_where_not(kept[number], parts[number][0])
            for number in range(group.rank + 1, group.size)
        ]
        ctx.save_for_backward(carried, *decays)
        return carried

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[override]
        group, kept = ctx.group, ctx.kept
        carried, *decays = ctx.saved_tensors
        gradients = group.exchange(zero_where_not(kept[group.rank], gradient), backward=True)
        # What the parts after this one want of the state that leaves it.
        wanted = torch.zeros_like(gradient)
        for number in range(group.size - 1, group.rank, -1):
            decay = decays[number - group.rank - 1]
            wanted = gradients[number][0] + decay.conj() * wanted
        return None, carried.conj() * wanted, wanted, None


def carry_inputs(
    group: SequenceGroup, inputs: Tensor, rows: int, segment_ids: Tensor | None
) -> Tensor:
    """(B, rows, C): the last inputs before this process's part, oldest first, 0 before the start
    and for other segments; differentiable in `inputs` (B, L, C), L >= 1. Parts may be shorter than
    `rows`."""
    last = inputs[:, max(0, inputs.shape[1] - rows) :]
    alive = None
    if segment_ids is not None:
        ids = segment_ids[:, max(0, inputs.shape[1] - rows) :]
        same = (ids == ids[:, -1:]).flip(1).cumprod(1).flip(1).bool()
        last = torch.where(same[..., None], last, last.new_zeros(()))
        # A part shorter than the filter lets what came before it through, if nothing changes.
        alive = same[:, 0] if rows else None
    last = torch.nn.functional.pad(last, (0, 0, rows - last.shape[1], 0))
    ends = edges(segment_ids, last)
    length = inputs.shape[1]
    meta = last.new_zeros(last.shape[0], 2, dtype=torch.int64)
    meta[:, 0] = length
    meta[:, 1] = 1 if alive is None else alive.to(torch.int64)
    return _CarryInputs.apply(group, last, ends, meta)


class _CarryInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, group, last, ends, meta):  # type: ignore[override]
        parts = group.exchange(last, ends, meta)
        kept = continued([part[1] for part in parts])
        # What passes through a part that is shorter than the filter, as in `_pass_on`.
        lengths = [part[2][:, 0] for part in parts]
        passing = [
            keep if keep is None else keep & part[2][:, 1].bool()
            for keep, part in zip(kept, parts, strict=True)
        ]
        carried = torch.zeros_like(last)
        for number in range(group.rank):
            earlier = zero_where_not(passing[number], carried)
            carried = parts[number][0] + _pass_on(earlier, lengths[number])
        ctx.group, ctx.kept, ctx.passing, ctx.lengths = group, kept, passing, lengths
        return zero_where_not(kept[group.rank], carried)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[override]
        group = ctx.group
        own = zero_where_not(ctx.kept[group.rank], gradient)
        gradients = group.exchange(own, backward=True)
        wanted = torch.zeros_like(gradient)
        for number in range(group.size - 1, group.rank, -1):
            passed = _pass_back(wanted, ctx.lengths[number])
            wanted = gradients[number][0] + zero_where_not(ctx.passing[number], passed)
        return None, wanted, None, None


def _pass_on(rows: Tensor, length: Tensor) -> Tensor:
    """Rows (B, W - 1, C) after `length` (B,) further positions: moved to the front."""
    return _shift(rows, length)


def _pass_back(rows: Tensor, length: Tensor) -> Tensor:
    """The transpose of `_pass_on`."""
    return _shift(rows, -length)


def _shift(rows: Tensor, by: Tensor) -> Tensor:
    """Row i of the result is row i + by of `rows`, 0 where there is none."""
    source = torch.arange(rows.shape[1], device=rows.device) + by[:, None]
    inside = (source >= 0) & (source < rows.shape[1])
    index = source.clamp(0, max(rows.shape[1] - 1, 0))[..., None].expand_as(rows)
    return torch.where(inside[..., None], rows.gather(1, index), rows.new_zeros(()))


def edges(segment_ids: Tensor | None, like: Tensor) -> Tensor:
    """(B, 2) int64: ids of the first and the last position of the own part; 0 without ids."""
    if segment_ids is None:
        return torch.zeros(like.shape[0], 2, dtype=torch.int64, device=like.device)
    return torch.stack([segment_ids[:, 0], segment_ids[:, -1]], dim=1).to(torch.int64)


def continued(ends: list[Tensor]) -> list[Tensor]:
    """For every part, (B,) bool: which rows go on with the segment that the part before ended in.

    The first part has nothing to go on with; what would enter it is 0 anyway.
    """
    first = torch.ones_like(ends[0][:, 0], dtype=torch.bool)
    return [first] + [a[:, 1] == b[:, 0] for a, b in itertools.pairwise(ends)]


def zero_where_not(kept: Tensor, values: Tensor) -> Tensor:
    """`values` (B, ...) with the rows that are not kept set to 0, also where they are NaN."""
    return torch.where(kept.view(-1, *[1] * (values.dim() - 1)), values, values.new_zeros(()))
