"""Launches of the tuned kernels, and what they can take.

Row strides and the number of channels are constants of the compiled kernels, so that a tile's
addresses are one register and fixed offsets; a model has few of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mambakernels.scan import (
    triton_tuned_backward,
    triton_tuned_forward,
    triton_tuned_gradients,
)
from mambakernels.scan.triton_problem import Problem, Tile, ceil_div, power_of_2, strides

STATES = 64  # the most that shared memory is laid out for


def can_run(p: Problem) -> bool:
    """float32 states, few of them, euler, and offsets within a tile that fit in 32 bits."""
    rows = (p.u, p.delta, p.B, p.C, p.z, p.segments)
    return (
        p.u.is_cuda
        and p.A.dtype == torch.float32
        and not p.zoh
        and p.sizes[3] <= STATES
        and all(t is None or abs(t.stride(1)) < 2**31 // 64 for t in rows)
    )


def walks_whole(p: Problem) -> bool:
    return p.tuning.whole or p.chunks == 1


def _tile(p: Problem, tile: Tile) -> tuple:
    """The kernels' last arguments."""
    _, length, channels, states = p.sizes
    pair = tile.pair if states % tile.pair == 0 else 1
    masked = bool(channels % tile.block or length % tile.steps)
    return states, power_of_2(states), tile.steps, tile.wide, pair, masked


def _programs(p: Problem, chunks: int) -> int:
    batch, _, channels, _ = p.sizes
    return batch * chunks * ceil_div(channels, p.tuning.walk.block)


def summarise(p: Problem, summaries: Tensor, count: int) -> None:
    _, length, channels, _ = p.sizes
    p.record.launch(triton_tuned_forward.summarise, _programs(p, count), (
        p.u, p.delta, p.A, p.B, p.bias, p.segments, summaries,
        length, channels, p.chunks, p.tuning.chunk, count,
        *strides(p.u, p.delta, p.B, p.segments),
        p.softplus, p.reverse, *_tile(p, p.tuning.walk),
    ), num_warps=1, maxnreg=p.tuning.walk_registers)  # fmt: skip


def scan_outputs(p: Problem, starts: Tensor | None, out: Tensor, final: Tensor) -> None:
    _, length, channels, _ = p.sizes
    whole = walks_whole(p)
    p.record.launch(triton_tuned_forward.scan_outputs, _programs(p, 1 if whole else p.chunks), (
        p.u, p.delta, p.A, p.B, p.C, p.D, p.z, p.bias, p.initial, p.segments, starts, out, final,
        length, channels, p.chunks, p.tuning.chunk,
        *strides(p.u, p.delta, p.B, p.C, p.z, p.segments),
        p.softplus, p.reverse, whole, *_tile(p, p.tuning.walk),
    ), num_warps=1, maxnreg=None if whole else p.tuning.walk_registers)  # fmt: skip


def summarise_adjoints(p: Problem, dout: Tensor, adjoints: Tensor) -> None:
    _, length, channels, _ = p.sizes
    p.record.launch(triton_tuned_backward.summarise_adjoints, _programs(p, p.chunks - 1), (
        dout, p.delta, p.A, p.C, p.z, p.bias, p.segments, adjoints,
        length, channels, p.chunks, p.tuning.chunk,
        *strides(dout, p.delta, p.C, p.z, p.segments),
        p.softplus, p.reverse, *_tile(p, p.tuning.walk),
    ), num_warps=1, maxnreg=p.tuning.walk_registers)  # fmt: skip


def scan_gradients(
    p: Problem, dout, dfinal, adjoints, starts, du, ddelta, dz, out, sums, dinitial
) -> Tensor:
    """Fills the gradients, and the outputs if wanted; returns the partial sums of dB and dC."""
    batch, length, channels, states = p.sizes
    tile, group = p.tuning.gradient, p.tuning.group
    groups = ceil_div(channels, tile.block * group)
    items = batch * p.chunks * groups
    # As many rounds as the GPU needs, all of them full.
    programs = ceil_div(items, ceil_div(items, p.tuning.programs))
    scratch = p.record.empty(programs * (p.tuning.chunk // tile.steps) * states * tile.block)
    partials = p.record.empty(groups, batch, length, 2, states)
    p.record.launch(triton_tuned_gradients.scan_gradients, programs, (
        dout, dfinal, adjoints, starts, p.u, p.delta, p.A, p.B, p.C, p.D, p.z, p.bias, p.initial,
        p.segments, du, ddelta, dz, out, partials, sums, dinitial, scratch,
        items, programs, length, channels, p.chunks, p.tuning.chunk,
        *strides(dout, p.u, p.delta, p.B, p.C, p.z, p.segments),
        p.softplus, p.reverse, group, *_tile(p, tile),
    ), num_warps=1, maxnreg=p.tuning.registers)  # fmt: skip
    return partials
