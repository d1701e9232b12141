"""From the vectors of a sequence to one vector, chunk by chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from mambacore.errors import UsageError

if TYPE_CHECKING:
    from mambacore.parallel import SequenceGroup

KINDS = ("mean", "last", "max")


class PoolState(NamedTuple):
    """What pooling carries between chunks.

    value: (batch, d) sum in float64, or last vector, or largest values.
    seen: (batch,) int64 valid positions so far.
    """

    value: Tensor
    seen: Tensor


class Pooling(nn.Module):
    """Mean, last or largest of a sequence's vectors, over its valid positions.

    Args:
        kind: "mean", "last" or "max".

    ``pool(hidden, lengths)`` pools a whole sequence. For a sequence in chunks: `start`, then
    `update` with each, then `finish`; the results agree to rounding, because the mean is summed
    in float64. A row without a single valid position gives zeros. Where several processes hold
    the sequence (`mambacore.parallel.split_sequence`), hidden and lengths are those of the own
    part, and every process gets the pooled whole.

    >>> pool = Pooling("mean")
    >>> hidden = torch.tensor([[[1.0], [3.0], [99.0]]])
    >>> pool(hidden, torch.tensor([2]))
    tensor([[2.]])
    >>> state = pool.update(pool.start(1, 1), hidden[:, :1])
    >>> pool.finish(pool.update(state, hidden[:, 1:], torch.tensor([1])))
    tensor([[2.]])
    """

    splits = True
    sequence_group: SequenceGroup | None = None

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind not in KINDS:
            raise UsageError(f"pooling {kind!r} is not one of {', '.join(KINDS)}")
        self.kind = kind

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(batch, length, d) to (batch, d)."""
        state = self.start(hidden.shape[0], hidden.shape[2], hidden.device)
        state = self.update(state, hidden, lengths)
        if self.sequence_group is not None:
            state = self._join(state, self.sequence_group)
        return self.finish(state)

    def segments(self, hidden: Tensor, segment_ids: Tensor, count: int) -> Tensor:
        """Pool every segment of packed rows by itself; the same bits each time.

        Args:
            hidden: (batch, length, d).
            segment_ids: (batch, length) integers, 0, 1, 2, ... along a row; ids from `count` on
                (padding) are left out.
            count: segments a row at most.

        Returns:
            (batch, count, d) float32; zeros for a number that a row does not have.

        Raises:
            UsageError: the largest values, which this cannot pool by segment.
        """
        if self.kind == "max" or self.sequence_group is not None:
            raise UsageError(
                "packed rows are pooled by mean or last, in one process: choose another pooling, "
                "or leave packing (or splitting the sequence) off"
            )
        numbers = torch.arange(count, device=segment_ids.device)
        inside = segment_ids[:, None, :] == numbers[:, None]
        lengths = inside.sum(-1)
        wide = hidden if hidden.dtype == torch.float64 else hidden.float()
        if self.kind == "last":
            # Segments stand one after the other, so their lengths say where each ends.
            last = (lengths.cumsum(1) - 1).clamp(min=0)
            pooled = wide.gather(1, last[..., None].expand(-1, -1, hidden.shape[-1]))
            return torch.where((lengths > 0)[..., None], pooled, 0.0)
        # A product of matrices: sums over a segment in a fixed order, and fast.
        with torch.autocast(hidden.device.type, enabled=False):
            return (inside.to(wide.dtype) @ wide) / lengths.clamp(min=1)[..., None]

    def start(self, batch: int, d: int, device: torch.device | str = "cpu") -> PoolState:
        """The state before the first chunk."""
        dtype = torch.float64 if self.kind == "mean" else torch.float32
        fill = -torch.inf if self.kind == "max" else 0.0
        return PoolState(
            torch.full((batch, d), fill, dtype=dtype, device=device),
            torch.zeros(batch, dtype=torch.int64, device=device),
        )

    def update(self, state: PoolState, hidden: Tensor, lengths: Tensor | None = None) -> PoolState:
        """Take in a chunk.

        Args:
            state: from `start` or `update`.
            hidden: (batch, length, d).
            lengths: (batch,) how many leading positions of this chunk are valid, 0 to length;
                None for all.
        """
        batch, length, _ = hidden.shape
        if lengths is None:
            added, valid = length, None
        else:
            if lengths.shape != (batch,):
                raise UsageError(
                    f"lengths has shape {tuple(lengths.shape)}; one a row is ({batch},)"
                )
            added = lengths = lengths.to(hidden.device, torch.int64)
            valid = (torch.arange(length, device=hidden.device) < lengths[:, None])[..., None]
        if length == 0:
            return state
        if self.kind == "mean":
            value = self._sum(hidden, valid) + state.value
        elif self.kind == "max":
            if valid is not None:
                hidden = torch.where(valid, hidden, -torch.inf)
            value = torch.maximum(state.value, hidden.amax(dim=1).to(state.value.dtype))
        elif lengths is None:
            value = hidden[:, -1].to(state.value.dtype)
        else:
            rows = torch.arange(batch, device=hidden.device)
            last = hidden[rows, (lengths - 1).clamp(min=0)].to(state.value.dtype)
            value = torch.where((lengths > 0)[:, None], last, state.value)
        return PoolState(value, state.seen + added)

    def finish(self, state: PoolState) -> Tensor:
        """(batch, d) float32."""
        if self.kind == "mean":
            return (state.value / state.seen.clamp(min=1)[:, None]).float()
        if self.kind == "max":
            return torch.where((state.seen > 0)[:, None], state.value, 0.0)
        return state.value

    def _join(self, own: PoolState, group: SequenceGroup) -> PoolState:
        """The state of the whole from each part's."""
        values = group.gather(own.value)
        seen = torch.stack([part[0] for part in group.exchange(own.seen)])
        if self.kind == "mean":
            return PoolState(values.sum(0), seen.sum(0))
        if self.kind == "max":
            return PoolState(values.amax(0), seen.sum(0))
        part = torch.arange(group.size, device=seen.device)[:, None]
        last = torch.where(seen > 0, part, 0).amax(0)
        return PoolState(values[last, torch.arange(len(last), device=last.device)], seen.sum(0))

    @staticmethod
    def _sum(hidden: Tensor, valid: Tensor | None) -> Tensor:
        if valid is not None:
            hidden = torch.where(valid, hidden, hidden.new_zeros(()))
        return hidden.sum(dim=1, dtype=torch.float64)
