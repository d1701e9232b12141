"""Packed sequences: where a row's segment changes, also across the cut between two chunks.

Every function takes ids as (batch, length) integers. Two neighbouring positions with different
ids belong to different sequences; an id may be used again later for another sequence, so what
counts is the run, never the id.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mambacore.errors import UsageError


def check_segment_ids(segment_ids: Tensor, batch: int, length: int) -> None:
    """Raise UsageError unless `segment_ids` holds (batch, length) integers."""
    if tuple(segment_ids.shape) != (batch, length):
        raise UsageError(
            f"segment_ids has shape {tuple(segment_ids.shape)}; it needs one id a position: "
            f"({batch}, {length})"
        )
    if segment_ids.is_floating_point() or segment_ids.is_complex():
        raise UsageError(f"segment_ids must be integers, not {segment_ids.dtype}")


def continues(segment_ids: Tensor | None, segment: Tensor) -> Tensor | None:
    """Which rows of a chunk go on with the segment that their state belongs to.

    Args:
        segment_ids: ids of the chunk, or None: the whole chunk continues.
        segment: (batch,) id of the last position before the chunk.

    Returns:
        (batch,) bool, or None when every row continues.
    """
    return None if segment_ids is None else segment_ids[:, 0] == segment


def keep_rows(carried: Tensor, kept: Tensor | None) -> Tensor:
    """The carried state, zeroed in the rows that start another segment (also where it is NaN)."""
    if kept is None:
        return carried
    return torch.where(kept.view(-1, *[1] * (carried.dim() - 1)), carried, carried.new_zeros(()))


def last_segment(segment_ids: Tensor | None, segment: Tensor) -> Tensor:
    """(batch,) int64 id of a chunk's last position; without ids, the one carried in."""
    return segment if segment_ids is None else segment_ids[:, -1].to(torch.int64)


def runs(segment_ids: Tensor, segment: Tensor) -> Tensor:
    """Number the runs of equal ids: 0 continues the carried segment, each change adds one.

    >>> runs(torch.tensor([[7, 7, 3, 7]]), torch.tensor([7]))
    tensor([[0, 0, 1, 2]])
    """
    before = torch.cat([segment[:, None].to(segment_ids.dtype), segment_ids[:, :-1]], dim=1)
    return (segment_ids != before).to(torch.int64).cumsum(dim=1)
