"""Ranks of a sequence group for the tests: threads that meet at a barrier, or gloo processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from mambacore.parallel import SequenceGroup


class Meeting:
    """Where threads lay down what they have and pick up everyone's; counts the bytes."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=30)
        self.table: list[Any] = [None] * size
        self.sent: list[int] = []

    def exchange(self, rank: int, tensors: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
        self.table[rank] = [t.detach().clone() for t in tensors]
        self.barrier.wait()
        found = [tuple(t.clone() for t in row) for row in self.table]
        if rank == 0:
            self.sent.append(sum(t.numel() * t.element_size() for t in tensors))
        self.barrier.wait()
        return found


@dataclass(frozen=True)
class ThreadGroup(SequenceGroup):
    """A `SequenceGroup` whose processes are threads."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def exchange(self, *tensors: Tensor, backward: bool = False) -> list[tuple[Tensor, ...]]:
        place = self.size - 1 - self.rank if self.flipped else self.rank
        rows = self.meeting.exchange(place, tensors)
        return rows[::-1] if self.flipped else rows


def in_threads(size: int, work: Callable[[SequenceGroup], Any]) -> tuple[list[Any], Meeting]:
    """What `work` returns on each of `size` ranks."""
    meeting = Meeting(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadGroup(rank, size, meeting=meeting))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    if errors:
        raise errors[0]
    return results, meeting


def _enter(rank: int, size: int, folder: str, work: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/start", rank=rank, world_size=size
    )
    try:
        torch.save(work(*arguments), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def in_processes(folder: Path, size: int, work: Callable, *arguments: Any) -> list[Any]:
    """What `work` returns on each of `size` gloo processes."""
    mp.spawn(_enter, (size, str(folder), work, arguments), nprocs=size)  # pyright: ignore
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]
