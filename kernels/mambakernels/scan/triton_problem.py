"""What a scan is given, bundled, and the sizes that its kernels use for it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

STATES_TUNED = 64  # the most states that the tuned kernels' shared memory is laid out for


@dataclass(frozen=True)
class Tuning:
    """Sizes of the kernels.

    chunk: steps that one program walks, a multiple of `steps`.
    tuned: the tuned kernels or the plain ones, where both can run.
    block, warps, sub: plain kernels: channels a program (a power of 2), warps a program, steps of
        a sub-chunk of the backward pass.
    steps, wide: tuned kernels: a tile's steps (a power of 2), channels a thread (1 or 2).
    group: tuned backward: blocks of channels that a program takes one after the other.
    registers: tuned backward: the most registers a thread.
    programs: backward: the most programs, each with its own scratch memory.
    """

    chunk: int = 256
    tuned: bool = True
    block: int = 64
    warps: int = 1
    sub: int = 8
    steps: int = 8
    wide: int = 2
    group: int = 1
    registers: int | None = 168
    programs: int = 132 * 11


def choose(batch, length, channels, state) -> Tuning:
    """The sizes for a problem, as measured on an H200 (`kernels/README.md`).

    Long chunks save memory; more, shorter ones fill the GPU when batch and channels do not.
    """
    blocks = batch * (-(-channels // 64))
    chunk = 256
    while chunk > 32 and length * blocks < chunk * 3000:
        chunk //= 2
    return Tuning(chunk=chunk)


@dataclass(frozen=True, eq=False)
class Problem:
    """The scan's inputs, as `op` hands them to a backend."""

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

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """batch, length, channels, states."""
        batch, length, channels = self.u.shape
        return batch, length, channels, self.A.shape[1]

    @property
    def chunks(self) -> int:
        return -(-self.u.shape[1] // self.tuning.chunk)


def strides(*tensors: Tensor | None) -> list[int]:
    """Batch and row strides; of absent tensors, zeros."""
    return [s for t in tensors for s in ((0, 0) if t is None else t.stride()[:2])]
