"""Launches of the tuned kernels, and what they can take.

Row strides and the number of channels are constants of the compiled kernels, so that a tile's
addresses are one register and fixed offsets; a model has few of them.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from mambakernels.scan import triton_tuned_backward, triton_tuned_forward
from mambakernels.scan.triton_problem import STATES_TUNED, Problem, strides


def can_run(p: Problem) -> bool:
    """float32 states, few of them, euler, and offsets within a tile that fit in 32 bits."""
    rows = (p.u, p.delta, p.B, p.C, p.z, p.segments)
    return (
        p.u.is_cuda
        and p.A.dtype == torch.float32
        and not p.zoh
        and p.sizes[3] <= STATES_TUNED
        and all(t is None or abs(t.stride(1)) < 2**31 // 64 for t in rows)
    )


def _options(p: Problem) -> dict[str, int | bool]:
    _, length, channels, states = p.sizes
    return {
        "N": states,
        "NP": triton.next_power_of_2(states),
        "T": p.tuning.steps,
        "WIDE": p.tuning.wide,
        "MASKED": bool(channels % (32 * p.tuning.wide) or length % p.tuning.steps),
        "num_warps": 1,
    }


def _grid(p: Problem) -> tuple[int]:
    batch, _, channels, _ = p.sizes
    return (batch * p.chunks * triton.cdiv(channels, 32 * p.tuning.wide),)


def summarise(p: Problem, summaries: Tensor) -> None:
    _, length, channels, _ = p.sizes
    triton_tuned_forward.summarise[_grid(p)](
        p.u, p.delta, p.A, p.B, p.bias, p.segments, summaries,
        length, channels, p.chunks, p.tuning.chunk,
        *strides(p.u, p.delta, p.B, p.segments),
        p.softplus, p.reverse, **_options(p),
    )  # fmt: skip


def scan_outputs(p: Problem, starts: Tensor | None, out: Tensor, final: Tensor) -> None:
    _, length, channels, _ = p.sizes
    triton_tuned_forward.scan_outputs[_grid(p)](
        p.u, p.delta, p.A, p.B, p.C, p.D, p.z, p.bias, p.initial, p.segments, starts, out, final,
        length, channels, p.chunks, p.tuning.chunk,
        *strides(p.u, p.delta, p.B, p.C, p.z, p.segments),
        p.softplus, p.reverse, **_options(p),
    )  # fmt: skip


def summarise_adjoints(p: Problem, dout: Tensor, adjoints: Tensor) -> None:
    _, length, channels, _ = p.sizes
    triton_tuned_backward.summarise_adjoints[_grid(p)](
        dout, p.delta, p.A, p.C, p.z, p.bias, p.segments, adjoints,
        length, channels, p.chunks, p.tuning.chunk,
        *strides(dout, p.delta, p.C, p.z, p.segments),
        p.softplus, p.reverse, **_options(p),
    )  # fmt: skip


def scan_gradients(
    p: Problem, dout, dfinal, adjoints, starts, du, ddelta, dz, sums, dinitial
) -> Tensor:
    """Fills the gradients; returns the partial sums of dB and dC."""
    batch, length, channels, states = p.sizes
    block = 32 * p.tuning.wide
    groups = triton.cdiv(channels, block * p.tuning.group)
    items = batch * p.chunks * groups
    programs = min(items, p.tuning.programs)
    scratch = p.A.new_empty(programs * (p.tuning.chunk // p.tuning.steps) * states * block)
    partials = p.A.new_empty(groups, batch, length, 2, states)
    triton_tuned_backward.scan_gradients[(programs,)](
        dout, dfinal, adjoints, starts, p.u, p.delta, p.A, p.B, p.C, p.D, p.z, p.bias, p.initial,
        p.segments, du, ddelta, dz, partials, sums, dinitial, scratch,
        items, programs, length, channels, p.chunks, p.tuning.chunk,
        *strides(dout, p.u, p.delta, p.B, p.C, p.z, p.segments),
        p.softplus, p.reverse, p.tuning.group, **_options(p), maxnreg=p.tuning.registers,
    )  # fmt: skip
    return partials
