"""Launches of the plain kernels: any number of states, any dtype, either discretisation."""

from __future__ import annotations

from torch import Tensor

from mambakernels.scan import triton_plain_backward, triton_plain_forward
from mambakernels.scan.triton_problem import Problem, ceil_div, power_of_2, strides


def _blocks(p: Problem) -> tuple[int, int]:
    """States and channels of a program's tile; few enough for the registers of its warps."""
    states = power_of_2(p.sizes[3])
    most = 1024 * p.tuning.warps * 4 // p.A.element_size()
    return states, max(4, min(p.tuning.block, most // states))


def _programs(p: Problem, chunks: int) -> int:
    batch, _, channels, _ = p.sizes
    return batch * chunks * ceil_div(channels, _blocks(p)[1])


def walks_whole(p: Problem) -> bool:
    return p.chunks == 1


def summarise(p: Problem, summaries: Tensor, count: int) -> None:
    _, length, channels, states = p.sizes
    p.record.launch(triton_plain_forward.summarise, _programs(p, count), (
        p.u, p.delta, p.A, p.B, p.bias, p.segments, summaries,
        length, channels, states, p.chunks, p.tuning.chunk, count,
        *strides(p.u, p.delta, p.B, p.segments),
        p.softplus, p.zoh, p.reverse, *_blocks(p),
    ), num_warps=p.tuning.warps)  # fmt: skip


def scan_outputs(p: Problem, starts: Tensor | None, out: Tensor, final: Tensor) -> None:
    _, length, channels, states = p.sizes
    p.record.launch(triton_plain_forward.scan_outputs, _programs(p, p.chunks), (
        p.u, p.delta, p.A, p.B, p.C, p.D, p.z, p.bias, p.initial, p.segments, starts, out, final,
        length, channels, states, p.chunks, p.tuning.chunk,
        *strides(p.u, p.delta, p.B, p.C, p.z, p.segments),
        p.softplus, p.zoh, p.reverse, *_blocks(p),
    ), num_warps=p.tuning.warps)  # fmt: skip


def summarise_adjoints(p: Problem, dout: Tensor, adjoints: Tensor) -> None:
    _, length, channels, states = p.sizes
    p.record.launch(triton_plain_backward.summarise_adjoints, _programs(p, p.chunks - 1), (
        dout, p.delta, p.A, p.C, p.z, p.bias, p.segments, adjoints,
        length, channels, states, p.chunks, p.tuning.chunk,
        *strides(dout, p.delta, p.C, p.z, p.segments),
        p.softplus, p.reverse, *_blocks(p),
    ), num_warps=p.tuning.warps)  # fmt: skip


def scan_gradients(
    p: Problem, dout, dfinal, adjoints, starts, du, ddelta, dz, out, sums, dinitial
) -> Tensor:
    """Fills the gradients, and the outputs if wanted; returns the partial sums of dB and dC."""
    batch, length, channels, states = p.sizes
    block_n, block_d = _blocks(p)
    items = _programs(p, p.chunks)
    programs = min(items, p.tuning.programs)
    subs = ceil_div(p.tuning.chunk, p.tuning.sub)
    scratch = p.record.empty(programs * (subs + p.tuning.sub) * block_n * block_d)
    partials = p.record.empty(ceil_div(channels, block_d), batch, length, 2, states)
    p.record.launch(triton_plain_backward.scan_gradients, programs, (
        dout, dfinal, adjoints, starts, p.u, p.delta, p.A, p.B, p.C, p.D, p.z, p.bias, p.initial,
        p.segments, du, ddelta, dz, out, partials, sums, dinitial, scratch,
        items, programs, length, channels, states, p.chunks, p.tuning.chunk, p.tuning.sub,
        *strides(dout, p.u, p.delta, p.B, p.C, p.z, p.segments),
        p.softplus, p.zoh, p.reverse, block_n, block_d,
    ), num_warps=p.tuning.warps)  # fmt: skip
    return partials
