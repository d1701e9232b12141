"""The scan's Triton backend: memory and the order of the passes. See `op` for the interface.

Two sets of kernels do the passes: `triton_tuned` where it can, `triton_plain` for the rest and
where Triton is interpreted. They share the layout of every buffer.

Saved for the backward pass: `saved` (batch, chunks, state + 1, channels), the state at every
chunk's start and the sum of the chunk's steps, in float32. At 256 steps a chunk and 16 states that
is 0.27 bytes for every (batch, step, channel), an eighth of a bfloat16 input. A sequence of one
chunk saves nothing.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import ModuleType

import torch
import triton
from torch import Tensor

from mambakernels.scan import triton_carry, triton_plain, triton_plain_backward
from mambakernels.scan.triton_problem import Problem, Tuning, choose

_INTERPRETED = triton.knobs.runtime.interpret
triton_tuned: ModuleType | None
try:
    from mambakernels.scan import triton_tuned
except ImportError:  # Gluon is young: another Triton may lack what is used of it
    triton_tuned = None


def saved_shape(batch, length, channels, state, tuning: Tuning | None = None) -> tuple[int, ...]:
    shape = summary_shape(batch, length, channels, state, tuning)
    return shape if shape[1] > 1 else (0,)


def summary_shape(batch, length, channels, state, tuning: Tuning | None = None) -> tuple[int, ...]:
    tuning = tuning or choose(batch, length, channels, state)
    return (batch, -(-length // tuning.chunk), state + 1, channels)


def _on_device(t: Tensor):
    return torch.cuda.device(t.device) if t.is_cuda else nullcontext()


def _passes(p: Problem) -> ModuleType:
    if p.tuning.tuned and not _INTERPRETED and triton_tuned is not None and triton_tuned.can_run(p):
        return triton_tuned
    return triton_plain


def _summarise(p: Problem) -> Tensor:
    batch, _, channels, states = p.sizes
    summaries = p.A.new_empty(batch, p.chunks, states + 1, channels)
    _passes(p).summarise(p, summaries)
    return summaries


def _carry_launch(p: Problem):
    batch, _, channels, states = p.sizes
    block = min(32 if p.chunks > 64 else 128, triton.next_power_of_2(channels))
    grid = (batch * states * triton.cdiv(channels, block),)
    ahead = 4 if _INTERPRETED else 8 if p.chunks <= 64 else 16
    return grid, {"BLOCK_D": block, "AHEAD": ahead, "num_warps": max(1, block // 32)}


def _carry(p: Problem, summaries: Tensor, starts: Tensor | None, decay: Tensor | None) -> Tensor:
    batch, _, channels, states = p.sizes
    final = p.A.new_empty(batch, channels, states)
    grid, options = _carry_launch(p)
    triton_carry.carry_states[grid](
        summaries, p.A, p.initial, starts, final, decay, channels, states, p.chunks, **options
    )
    return final


def forward(
    u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids, delta_softplus, zoh, reverse,
    *, save=True, chunk_states=None, tuning: Tuning | None = None,
):  # fmt: skip
    tuning = tuning or choose(*u.shape, A.shape[1])
    p = Problem(
        u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids,
        delta_softplus, zoh, reverse, tuning,
    )  # fmt: skip
    out = u.new_empty(u.shape)
    starts = None
    with _on_device(u):
        if p.chunks == 1:
            final = A.new_empty(u.shape[0], *A.shape)
        elif chunk_states is not None and chunk_states.shape == summary_shape(
            *u.shape, A.shape[1], tuning
        ):
            starts = torch.empty_like(chunk_states)
            final = _carry(p, chunk_states, starts, None)
        else:
            starts = _summarise(p)
            final = _carry(p, starts, starts, None)
        _passes(p).scan_outputs(p, starts, out, final)
    return out, final, starts if save and starts is not None else A.new_empty(0)


def summary(
    u, delta, A, B, delta_bias, segment_ids, delta_softplus, zoh, reverse,
    *, tuning: Tuning | None = None,
):  # fmt: skip
    tuning = tuning or choose(*u.shape, A.shape[1])
    p = Problem(
        u, delta, A, B, None, None, None, delta_bias, None, segment_ids,
        delta_softplus, zoh, reverse, tuning,
    )  # fmt: skip
    with _on_device(u):
        summaries = _summarise(p)
        decay = A.new_empty(u.shape[0], *A.shape)
        state = _carry(p, summaries, None, decay)
    return decay, state, summaries


def backward(
    dout, dfinal_state, saved, out, u, delta, A, B, C, D, z, delta_bias, initial_state,
    segment_ids, delta_softplus, zoh, reverse, *, tuning: Tuning | None = None,
):  # fmt: skip
    batch, length, channels, states = *u.shape, A.shape[1]
    tuning = tuning or choose(batch, length, channels, states)
    p = Problem(
        u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids,
        delta_softplus, zoh, reverse, tuning,
    )  # fmt: skip
    passes = _passes(p)
    dinitial = None if initial_state is None else torch.empty_like(initial_state)
    du, ddelta, dB, dC = (t.new_empty(t.shape) for t in (u, delta, B, C))
    dz = None if z is None else z.new_empty(z.shape)
    adjoints = starts = None
    with _on_device(u):
        if p.chunks > 1:
            starts = saved
            adjoints = A.new_empty(batch, p.chunks, states, channels)
            passes.summarise_adjoints(p, dout, adjoints)
            grid, options = _carry_launch(p)
            triton_carry.carry_adjoints[grid](
                starts, A, dfinal_state, adjoints, dinitial, channels, states, p.chunks, **options
            )
        sums = A.new_empty(batch, p.chunks, states + 2, channels)
        partials = passes.scan_gradients(
            p, dout, dfinal_state, adjoints, starts, du, ddelta, dz, sums, dinitial
        )
        triton_plain_backward.add_partials[(triton.cdiv(partials[0].numel(), 1024),)](
            partials, dB, dC, partials.shape[0], batch * length, states, BLOCK=1024
        )
    total = sums.sum((0, 1))
    return (
        du, ddelta, total[:states].T.clone(memory_format=torch.contiguous_format), dB, dC,
        None if D is None else total[states].clone(),
        dz,
        None if delta_bias is None else total[states + 1].clone(),
        dinitial,
    )  # fmt: skip
