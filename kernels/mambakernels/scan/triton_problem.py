"""What a scan is given, bundled, and the sizes that its kernels use for it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from mambakernels.scan.triton_launch import Recording


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

    record: launches the kernels and makes their scratch memory.
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
    record: Recording


def bundle(
    u, delta, A, B, C, D, z, bias, initial, segments, softplus, zoh, reverse,
    tuning: Tuning | None,
) -> Problem:  # fmt: skip
    sizes = (*u.shape, A.shape[1])
    tuning = tuning or choose_once(*sizes)
    return Problem(
        u, delta, A, B, C, D, z, bias, initial, segments, softplus, zoh, reverse,
        tuning, sizes, ceil_div(sizes[1], tuning.chunk), Recording(A),
    )  # fmt: skip


def identify(
    u: Tensor, A: Tensor, rows: tuple[Tensor | None, ...], whole: tuple[Tensor | None, ...],
    *options: Hashable,
) -> tuple[Hashable, list[int | None]]:  # fmt: skip
    """(key, addresses of rows and whole). Keys are equal only if every kernel compiled for one
    problem serves the other, with the same sizes and launches.

    rows: with strides of their own. whole: contiguous, in the state's dtype, of shapes that follow
        from u's, A's and the options.
    """
    addresses: list[int | None] = []
    kinds = []
    low = given = 0
    for t in rows:
        if t is None:
            addresses.append(None)
            kinds.append(None)
        else:
            address = t.data_ptr()
            addresses.append(address)
            low |= address
            kinds.append((t.dtype, t.stride()))
    for t in whole:
        given <<= 1
        if t is None:
            addresses.append(None)
        else:
            address = t.data_ptr()
            addresses.append(address)
            low |= address
            given |= 1
    # Kernels are compiled for addresses that are multiples of 16, each argument for itself.
    odd = tuple((a or 0) % 16 for a in addresses) if low % 16 else None
    key = (options, u.shape, A.shape[1], A.dtype, u.get_device(), given, odd, *kinds)
    return key, addresses


def strides(*tensors: Tensor | None) -> list[int]:
    """Batch and row strides; of absent tensors, zeros."""
    return [s for t in tensors for s in ((0, 0) if t is None else t.stride()[:2])]
