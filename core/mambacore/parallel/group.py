"""The processes that hold one sequence between them, in the order of its parts.

What crosses is packed into one all-gather of bytes, whatever the dtypes: in these exchanges a
message more costs more than its contents.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mambacore.errors import UsageError

_ALIGNMENT = 16  # bytes: of the widest number, a complex128


def part_of(length: int, rank: int, size: int) -> tuple[int, int]:
    """Where part `rank` of `size` of a sequence starts and ends; parts differ by at most one.

    >>> [part_of(10, rank, 3) for rank in range(3)]
    [(0, 4), (4, 7), (7, 10)]
    """
    whole, more = divmod(length, size)
    start = rank * whole + min(rank, more)
    return start, start + whole + (rank < more)


@dataclass(frozen=True)
class SequenceGroup:
    """This process's place among those that hold the parts of one sequence.

    rank: which part this process holds, from 0. size: how many parts there are.
    forward_group, backward_group: two process groups of the same processes. The backward pass has
    its own, so that its messages never queue behind, or get mistaken for, those of a forward pass.
    flipped: the sequence is read from its other end, so that rank 0 is the last process.

    Made by `split_world`; a group of one process needs no torch.distributed and exchanges nothing.

    >>> SequenceGroup().gather(torch.tensor([1.0])).tolist()
    [[1.0]]
    """

    rank: int = 0
    size: int = 1
    forward_group: Any = None
    backward_group: Any = None
    flipped: bool = False

    @classmethod
    def split_world(cls, size: int, timeout: timedelta | None = None) -> SequenceGroup:
        """Cut all processes into groups of `size` neighbours; every process has to call this.

        Args:
            size: processes a sequence; divides the number of processes.
            timeout: how long an exchange may wait; torch's own by default.

        Raises:
            UsageError: no process group was started, or `size` does not divide the processes.
        """
        if size == 1:
            return cls()
        if not (dist.is_available() and dist.is_initialized()):
            raise UsageError(
                f"a sequence over {size} processes needs torch.distributed: start the program "
                "with torchrun, and call torch.distributed.init_process_group first"
            )
        world, rank = dist.get_world_size(), dist.get_rank()
        if size < 1 or world % size:
            raise UsageError(
                f"{world} processes do not divide into groups of {size}; start a multiple of "
                f"{size} processes, or split the sequence over a divisor of {world}"
            )
        rows = [list(range(first, first + size)) for first in range(0, world, size)]
        return cls(rank % size, size, _own_group(rows, timeout), _own_group(rows, timeout))

    @classmethod
    def of_mesh(cls, mesh: Any, name: str, timeout: timedelta | None = None) -> SequenceGroup:
        """The group along the dimension `name` of a two-dimensional device mesh, whose last
        dimension that is; every process has to call this."""
        rows = mesh.mesh.tolist()
        size = len(rows[0])
        if size == 1:
            return cls()
        return cls(mesh.get_local_rank(name), size, mesh.get_group(name), _own_group(rows, timeout))

    def reversed(self) -> SequenceGroup:
        """The same processes for the sequence read backwards."""
        return replace(self, rank=self.size - 1 - self.rank, flipped=not self.flipped)

    def part(self, length: int) -> tuple[int, int]:
        """Start and end of this process's part of `length` positions."""
        return part_of(length, self.rank, self.size)

    def exchange(self, *tensors: Tensor, backward: bool = False) -> list[tuple[Tensor, ...]]:
        """Everyone's `tensors` in the order of the sequence; shapes and dtypes agree everywhere.

        Not differentiable. One message, of the tensors' bytes times the processes.
        """
        if self.size == 1:
            return [tensors]
        packed, places = _pack(tensors)
        gathered = packed.new_empty(self.size, packed.numel())
        group = self.backward_group if backward else self.forward_group
        dist.all_gather_into_tensor(gathered.view(-1), packed, group=group)
        rows = list(gathered.unbind(0))
        if self.flipped:
            rows.reverse()
        return [_unpack(row, tensors, places) for row in rows]

    def gather(self, tensor: Tensor) -> Tensor:
        """(size, *shape): everyone's tensor in the order of the sequence, differentiable.

        A gradient is the sum over the processes, so the objective is the sum of what each of them
        differentiates. With the same loss everywhere that is `size` times the loss: average the
        gradients over the processes (`average_gradients`), as data parallelism does.
        """
        if self.size == 1:
            return tensor[None]
        return _Gather.apply(self, tensor)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, differentiable as `gather` is."""
        return self.gather(tensor).sum(0)

    def first_of_next(self, tensor: Tensor) -> Tensor:
        """What the next process passes here; on the last one, its own. For data: no gradient."""
        rows = self.exchange(tensor.detach())
        return rows[min(self.rank + 1, self.size - 1)][0]

    def __deepcopy__(self, memo: dict) -> SequenceGroup:
        return self  # process groups cannot be copied


def _own_group(rows: list[list[int]], timeout: timedelta | None) -> Any:
    """A new process group for each list of ranks; this process's own."""
    groups = [dist.new_group(ranks, timeout) for ranks in rows]
    rank = dist.get_rank()
    return next(group for group, ranks in zip(groups, rows, strict=True) if rank in ranks)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, group: SequenceGroup, tensor: Tensor) -> Tensor:  # type: ignore[override]
        ctx.group = group
        return torch.stack([row[0] for row in group.exchange(tensor)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        rows = ctx.group.exchange(gradient, backward=True)
        # In the order of the sequence, so that every process adds up the same way.
        return None, torch.stack([row[0][ctx.group.rank] for row in rows]).sum(0)


def _pack(tensors: tuple[Tensor, ...]) -> tuple[Tensor, list[int]]:
    pieces, places, end = [], [], 0
    for tensor in tensors:
        raw = tensor.detach().contiguous().flatten().view(torch.uint8)
        places.append(end)
        missing = -raw.numel() % _ALIGNMENT
        pieces.append(raw)
        if missing:
            pieces.append(raw.new_zeros(missing))
        end += raw.numel() + missing
    return torch.cat(pieces), places


def _unpack(row: Tensor, like: tuple[Tensor, ...], places: list[int]) -> tuple[Tensor, ...]:
    found = []
    for tensor, place in zip(like, places, strict=True):
        raw = row[place : place + tensor.numel() * tensor.element_size()]
        found.append(raw.view(tensor.dtype).view(tensor.shape))
    return tuple(found)
