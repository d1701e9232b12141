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
    return _CarryState.apply(_States(group, segment_ids), decay, state)


def carry_inputs(
    group: SequenceGroup, inputs: Tensor, rows: int, segment_ids: Tensor | None
) -> Tensor:
    """(B, rows, C): the last inputs before this process's part, oldest first, 0 before the start
    and for other segments; differentiable in `inputs` (B, L, C), L >= 1. Parts may be shorter than
    `rows`."""
    tail = inputs[:, max(0, inputs.shape[1] - rows) :]
    return _CarryInputs.apply(_Inputs(group, segment_ids, inputs.shape[1], rows), tail)


class MixerHandover:
    """Both, for `mambakernels.mamba_mixer`, which does its own differentiation.

    Args:
        group: who holds the sequence.
        segment_ids: (B, L) ids of the own part, or None.
    """

    def __init__(self, group: SequenceGroup, segment_ids: Tensor | None) -> None:
        self._group, self._segment_ids = group, segment_ids
        self._states = _States(group, segment_ids)
        self._inputs: _Inputs | None = None
        self._decays: list[Tensor] = []

    def inputs(self, inner: Tensor, rows: int) -> Tensor:
        """As `carry_inputs`."""
        length = inner.shape[1]
        self._inputs = _Inputs(self._group, self._segment_ids, length, rows)
        return self._inputs.carry(inner[:, max(0, length - rows) :])

    def inputs_gradient(self, gradient: Tensor) -> Tensor:
        """(B, min(rows, L), C) of the own part's last inputs, from that of `inputs`'s result."""
        assert self._inputs is not None
        return self._inputs.carry_back(gradient)

    def state(self, decay: Tensor, state: Tensor) -> Tensor:
        """As `carry_state`."""
        carried, self._decays = self._states.carry(decay, state)
        return carried

    def state_gradient(self, gradient: Tensor) -> Tensor:
        """Of the state that leaves this part, from that of `state`'s result by this part alone."""
        return self._states.carry_back(gradient, self._decays)


class _States:
    """The exchange of states, there and back."""

    def __init__(self, group: SequenceGroup, segment_ids: Tensor | None) -> None:
        self._group, self._segment_ids = group, segment_ids
        self._kept: list[Tensor] = []

    def carry(self, decay: Tensor, state: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The state that enters, and the decays of the parts after this one."""
        group = self._group
        parts = group.exchange(decay, state, edges(self._segment_ids, state))
        self._kept = kept = continued([part[2] for part in parts])
        carried = torch.zeros_like(state)
        for (part_decay, part_state, _), keep in zip(parts[: group.rank], kept, strict=False):
            carried = part_decay * zero_where_not(keep, carried) + part_state
        after = range(group.rank + 1, group.size)
        decays = [zero_where_not(kept[number], parts[number][0]) for number in after]
        return zero_where_not(kept[group.rank], carried), decays

    def carry_back(self, gradient: Tensor, decays: list[Tensor]) -> Tensor:
        """What the parts after this one want of the state that leaves it."""
        group = self._group
        own = zero_where_not(self._kept[group.rank], gradient)
        after = group.exchange(own, backward=True)[group.rank + 1 :]
        wanted = torch.zeros_like(gradient)
        for (theirs,), decay in zip(reversed(after), reversed(decays), strict=True):
            wanted = theirs + decay.conj() * wanted
        return wanted


class _CarryState(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: _States, decay, state):  # type: ignore[override]
        carried, decays = states.carry(decay, state)
        ctx.states = states
        ctx.save_for_backward(carried, *decays)
        return carried

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[override]
        carried, *decays = ctx.saved_tensors
        wanted = ctx.states.carry_back(gradient, decays)
        return None, carried.conj() * wanted, wanted


class _Inputs:
    """The exchange of last inputs, there and back; a part may be shorter than `rows`."""

    def __init__(
        self, group: SequenceGroup, segment_ids: Tensor | None, length: int, rows: int
    ) -> None:
        self._group, self._segment_ids = group, segment_ids
        self._length, self._rows = length, rows
        self._same: Tensor | None = None
        if segment_ids is not None:
            last = segment_ids[:, max(0, length - rows) :]
            self._same = (last == segment_ids[:, -1:]).flip(1).cumprod(1).flip(1).bool()
        self._kept: list[Tensor] = []
        self._passing: list[Tensor] = []
        self._lengths: list[Tensor] = []

    def carry(self, tail: Tensor) -> Tensor:
        """(B, rows, C) before the own part, from its last min(L, rows) inputs."""
        group = self._group
        if self._same is not None:
            tail = torch.where(self._same[..., None], tail, tail.new_zeros(()))
        last = torch.nn.functional.pad(tail, (0, 0, self._rows - tail.shape[1], 0))
        # Length, and whether what came before a part shorter than `rows` is still of its segment.
        meta = torch.full((len(last), 2), self._length, device=last.device)
        meta[:, 1] = 1 if self._same is None or not self._rows else self._same[:, 0]
        parts = group.exchange(last, edges(self._segment_ids, last), meta)
        self._kept = kept = continued([part[1] for part in parts])
        self._passing = [
            keep & part[2][:, 1].bool() for keep, part in zip(kept, parts, strict=True)
        ]
        self._lengths = [part[2][:, 0] for part in parts]
        carried = torch.zeros_like(last)
        for number in range(group.rank):
            earlier = zero_where_not(self._passing[number], carried)
            carried = parts[number][0] + _shift(earlier, self._lengths[number])
        return zero_where_not(kept[group.rank], carried)

    def carry_back(self, gradient: Tensor) -> Tensor:
        """(B, min(L, rows), C) of the own last inputs."""
        group = self._group
        gradients = group.exchange(zero_where_not(self._kept[group.rank], gradient), backward=True)
        wanted = torch.zeros_like(gradient)
        for number in range(group.size - 1, group.rank, -1):
            passed = _shift(wanted, -self._lengths[number])
            wanted = gradients[number][0] + zero_where_not(self._passing[number], passed)
        own = wanted[:, max(0, self._rows - self._length) :]
        if self._same is not None:
            own = torch.where(self._same[..., None], own, own.new_zeros(()))
        return own


class _CarryInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs: _Inputs, tail):  # type: ignore[override]
        ctx.inputs = inputs
        return inputs.carry(tail)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[override]
        return None, ctx.inputs.carry_back(gradient)


def _shift(rows: Tensor, by: Tensor) -> Tensor:
    """Row i of the result is row i + by (B,) of `rows`, 0 where there is none.

    By a part's length: the last inputs before it, as they stand after it. By minus that: its
    transpose.
    """
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
