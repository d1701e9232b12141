"""Launches of the plain kernels: any number of states, any dtype, either discretisation."""

from __future__ import annotations

import triton
from torch import Tensor

from mambakernels.scan import triton_plain_backward, triton_plain_forward
from mambakernels.scan.triton_problem import Problem, strides


def _grid(p: Problem) -> tuple[int]:
    batch, _, channels, _ = p.sizes
    return (batch * p.chunks * triton.cdiv(channels, p.tuning.block),)


def _options(p: Problem) -> dict[str, int]:
    return {
        "BLOCK_N": triton.next_power_of_2(p.sizes[3]),
        "BLOCK_D": p.tuning.block,
        "num_warps": p.tuning.warps,
    }


def summarise(p: Problem, summaries: Tensor) -> None:
    _, length, channels, states = p.sizes
    triton_plain_forward.summarise[_grid(p)](
        p.u, p.delta, p.A, p.B, p.bias, p.segments, summaries,
        length, channels, states, p.chunks, p.tuning.chunk,
        *strides(p.u, p.delta, p.B, p.segments),
        p.softplus, p.zoh, p.reverse, **_options(p),
    )  # fmt: skip


def scan_outputs(p: Problem, starts: Tensor | None, out: Tensor, final: Tensor) -> None:
    _, length, channels, states = p.sizes
    triton_plain_forward.scan_outputs[_grid(p)](
        p.u, p.delta, p.A, p.B, p.C, p.D, p.z, p.bias, p.initial, p.segments, starts, out, final,
        length, channels, states, p.chunks, p.tuning.chunk,
        *strides(p.u, p.delta, p.B, p.C, p.z, p.segments),
        p.softplus, p.zoh, p.reverse, **_options(p),
    )  # fmt: skip


def summarise_adjoints(p: Problem, dout: Tensor, adjoints: Tensor) -> None:
    _, length, channels, states = p.sizes
    triton_plain_backward.summarise_adjoints[_grid(p)](
        dout, p.delta, p.A, p.C, p.z, p.bias, p.segments, adjoints,
        length, channels, states, p.chunks, p.tuning.chunk,
        *strides(dout, p.delta, p.C, p.z, p.segments),
        p.softplus, p.reverse, **_options(p),
    )  # fmt: skip


def scan_gradients(
    p: Problem, dout, dfinal, adjoints, starts, du, ddelta, dz, sums, dinitial
) -> Tensor:
    """Fills the gradients; returns the partial sums of dB and dC."""
    batch, length, channels, states = p.sizes
    options = _options(p)
    (items,) = _grid(p)
    programs = min(items, p.tuning.programs)
    subs = triton.cdiv(p.tuning.chunk, p.tuning.sub)
    tile = options["BLOCK_N"] * p.tuning.block
    scratch = p.A.new_empty(programs * (subs + p.tuning.sub) * tile)
    blocks = triton.cdiv(channels, p.tuning.block)
    partials = p.A.new_empty(blocks, batch, length, 2, states)
    triton_plain_backward.scan_gradients[(programs,)](
        dout, dfinal, adjoints, starts, p.u, p.delta, p.A, p.B, p.C, p.D, p.z, p.bias, p.initial,
        p.segments, du, ddelta, dz, partials, sums, dinitial, scratch,
        items, programs, length, channels, states, p.chunks, p.tuning.chunk, p.tuning.sub,
        *strides(dout, p.u, p.delta, p.B, p.C, p.z, p.segments),
        p.softplus, p.zoh, p.reverse, **options,
    )  # fmt: skip
    return partials
