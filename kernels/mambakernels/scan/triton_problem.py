"""What a scan is given, bundled, and the sizes that its kernels use for it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from mambakernels.scan.triton_launch import stream_of


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The least that is at least n."""
    return 1 << (n - 1).bit_length()


@dataclass(frozen=True)
class Tile:
    """What a tuned kernel holds in registers at a time.

    steps: of time, a power of 2. wide: channels a thread, 1 or 2. pair: states walked together,
    a power of 2 (1 where it does not divide the number of states).
    """

    steps: int = 8
    wide: int = 2
    pair: int = 2

    @property
    def block(self) -> int:
        """Channels of a program, which is one warp."""
        return 32 * self.wide


@dataclass(frozen=True)
class Tuning:
    """Sizes of the kernels.

    chunk: steps between saved states, and what one program walks; a multiple of the tiles' steps.
    tuned: the tuned kernels or the plain ones, where both can run.
    block, warps, sub: plain kernels: channels a program (a power of 2), warps a program, steps of
        a sub-chunk of the backward pass.
    walk, walk_registers: tuned kernels, all but the gradients': tile, and the most registers a
        thread, so that more programs run at a time.
    whole: tuned forward: one program walks all chunks, so no summaries are needed; few programs
        run then, with any number of registers.
    gradient, registers: tuned gradients: tile, and the most registers a thread.
    group: tuned gradients: blocks of channels that a program takes one after the other.
    programs: backward: the most programs, each with its own scratch memory.
    """

    chunk: int = 256
    tuned: bool = True
    block: int = 64
    warps: int = 1
    sub: int = 8
    walk: Tile = Tile(steps=16, wide=1)
    walk_registers: int | None = 128
    whole: bool = False
    gradient: Tile = Tile()
    registers: int | None = None
    group: int = 1
    programs: int = 132 * 8


LONGEST = 512  # steps of a chunk
SLOTS = 132 * 8  # programs of the gradient kernel that an H200 runs at a time


def choose(batch, length, channels, state) -> Tuning:
    """The sizes for a problem, as measured on an H200 (`kernels/README.md`).

    Chunks are as long as memory and cache like them, and as many as fill the GPU a whole number of
    times. Where batch and channels alone fill it, the forward pass needs no summaries.
    """
    blocks = batch * ceil_div(channels, 64)
    rounds = 1
    while rounds < 8 and length * blocks > rounds * SLOTS * LONGEST:
        rounds += 1
    chunk = 256
    if rounds < 8:
        count = max(rounds * SLOTS // blocks, 1)
        chunk = min(max(ceil_div(ceil_div(length, count), 16) * 16, 32), LONGEST)
    group = 1
    while group < 4 and blocks * ceil_div(length, chunk) > 8 * group * SLOTS:
        group *= 2
    return Tuning(chunk=chunk, whole=2 * blocks >= 900, group=group)


choose_once = lru_cache(maxsize=1024)(choose)


class Problem(NamedTuple):
    """The scan's inputs, as `op` hands them to a backend, with their sizes.

    key: equal for two problems only if every kernel compiled for one serves the other.
    stream: where the kernels go.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor | None
    D: Tensor | None
    z: Tensor | None
    bias: Tensor | None
    initial: Tensor | None
    segments: Tensor | None
    softplus: bool
    zoh: bool
    reverse: bool
    tuning: Tuning
    sizes: tuple[int, int, int, int]
    chunks: int
    key: Hashable
    stream: int


def describe(t: Tensor | None) -> Hashable:
    """All that a kernel's compiled code can depend on, apart from the sizes."""
    return None if t is None else (t.dtype, t.stride(), t.data_ptr() % 16 == 0)


def bundle(
    u, delta, A, B, C, D, z, bias, initial, segments, softplus, zoh, reverse,
    tuning: Tuning | None, *others: Tensor | None,
) -> Problem:  # fmt: skip
    """others: further tensors that this call's kernels get from the caller."""
    sizes = (*u.shape, A.shape[1])
    tuning = tuning or choose_once(*sizes)
    tensors = (u, delta, A, B, C, D, z, bias, initial, segments, *others)
    key = (sizes, tuning, softplus, zoh, reverse, u.device, *map(describe, tensors))
    return Problem(
        u, delta, A, B, C, D, z, bias, initial, segments, softplus, zoh, reverse,
        tuning, sizes, ceil_div(sizes[1], tuning.chunk), key, stream_of(u),
    )  # fmt: skip


def strides(*tensors: Tensor | None) -> list[int]:
    """Batch and row strides; of absent tensors, zeros."""
    return [s for t in tensors for s in ((0, 0) if t is None else t.stride()[:2])]
