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

from mambakernels.scan import triton_carry, triton_plain, triton_sums
from mambakernels.scan.triton_launch import Launcher
from mambakernels.scan.triton_problem import Problem, Tuning, bundle, ceil_div, choose, power_of_2

FILLS_OUTPUTS = True  # of `op`'s interface

_INTERPRETED = triton.knobs.runtime.interpret
triton_tuned: ModuleType | None
try:
    from mambakernels.scan import triton_tuned
except ImportError:  # Gluon is young: another Triton may lack what is used of it
    triton_tuned = None

_carry_states = Launcher(triton_carry.carry_states)
_carry_adjoints = Launcher(triton_carry.carry_adjoints)
_add_up = Launcher(triton_sums.add_up)


def saved_shape(batch, length, channels, state, tuning: Tuning | None = None) -> tuple[int, ...]:
    shape = summary_shape(batch, length, channels, state, tuning)
    return shape if shape[1] > 1 else (0,)


def summary_shape(batch, length, channels, state, tuning: Tuning | None = None) -> tuple[int, ...]:
    tuning = tuning or choose(batch, length, channels, state)
    return (batch, ceil_div(length, tuning.chunk), state + 1, channels)


def _on_device(t: Tensor):
    if not t.is_cuda or t.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(t.device)


def _passes(p: Problem) -> ModuleType:
    if p.tuning.tuned and not _INTERPRETED and triton_tuned is not None and triton_tuned.can_run(p):
        return triton_tuned
    return triton_plain


def _new_chunks(p: Problem, rows: int) -> Tensor:
    batch, _, channels, _ = p.sizes
    return p.A.new_empty(batch, p.chunks, rows, channels)


def _carry_sizes(p: Problem) -> tuple[int, int, int]:
    """Programs, and the channels of one and the chunks that it reads ahead."""
    batch, _, channels, states = p.sizes
    block = min(32, power_of_2(channels))
    ahead = 4 if _INTERPRETED else min(16, max(4, power_of_2(p.chunks - 1)))
    return batch * states * ceil_div(channels, block), block, ahead


def _carry(p: Problem, summaries, starts, final, decay, count: int) -> None:
    _, _, channels, states = p.sizes
    copy = starts is not None and starts is not summaries
    programs, block, ahead = _carry_sizes(p)
    _carry_states((p.key, count, starts is None, copy), p.stream, programs, (
        summaries, p.A, p.initial, starts, final, decay, p.chunks, count,
        channels, states, copy, block, ahead,
    ), num_warps=1)  # fmt: skip


def forward(
    u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids, delta_softplus, zoh, reverse,
    *, save=True, chunk_states=None, tuning: Tuning | None = None,
):  # fmt: skip
    p = bundle(
        u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids,
        delta_softplus, zoh, reverse, tuning, chunk_states,
    )  # fmt: skip
    batch, _, channels, states = p.sizes
    passes = _passes(p)
    out = u.new_empty(u.shape)
    final = A.new_empty(batch, channels, states)
    starts = None
    with _on_device(u):
        if passes.walks_whole(p):
            if save and p.chunks > 1:
                starts = _new_chunks(p, states + 1)
        elif chunk_states is not None and chunk_states.shape == (
            batch, p.chunks, states + 1, channels,
        ):  # fmt: skip
            starts = torch.empty_like(chunk_states)
            _carry(p, chunk_states, starts, None, None, p.chunks - 1)
        else:
            starts = _new_chunks(p, states + 1)
            passes.summarise(p, starts, p.chunks - 1)
            _carry(p, starts, starts, None, None, p.chunks - 1)
        passes.scan_outputs(p, starts, out, final)
    return out, final, starts if save and starts is not None else A.new_empty(0)


def summary(
    u, delta, A, B, delta_bias, segment_ids, delta_softplus, zoh, reverse,
    *, tuning: Tuning | None = None,
):  # fmt: skip
    p = bundle(
        u, delta, A, B, None, None, None, delta_bias, None, segment_ids,
        delta_softplus, zoh, reverse, tuning,
    )  # fmt: skip
    with _on_device(u):
        summaries = _new_chunks(p, p.sizes[3] + 1)
        _passes(p).summarise(p, summaries, p.chunks)
        state, decay = (A.new_empty(u.shape[0], *A.shape) for _ in range(2))
        _carry(p, summaries, None, state, decay, p.chunks)
    return decay, state, summaries


def backward(
    dout, dfinal_state, saved, out, u, delta, A, B, C, D, z, delta_bias, initial_state,
    segment_ids, delta_softplus, zoh, reverse, *, tuning: Tuning | None = None,
):  # fmt: skip
    p = bundle(
        u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids,
        delta_softplus, zoh, reverse, tuning, dout, dfinal_state, saved,
    )  # fmt: skip
    batch, length, channels, states = p.sizes
    passes = _passes(p)
    dinitial = None if initial_state is None else torch.empty_like(initial_state)
    du, ddelta, dB, dC = (t.new_empty(t.shape) for t in (u, delta, B, C))
    dz = None if z is None else z.new_empty(z.shape)
    dA = A.new_empty(A.shape)
    dD = None if D is None else D.new_empty(D.shape)
    dbias = None if delta_bias is None else delta_bias.new_empty(delta_bias.shape)
    adjoints = starts = None
    with _on_device(u):
        if p.chunks > 1:
            starts = saved
            adjoints = _new_chunks(p, states)
            passes.summarise_adjoints(p, dout, adjoints)
            programs, block, ahead = _carry_sizes(p)
            _carry_adjoints(p.key, p.stream, programs, (
                starts, A, dfinal_state, adjoints, p.chunks, channels, states, block, ahead
            ), num_warps=1)  # fmt: skip
        sums = _new_chunks(p, states + 2)
        partials = passes.scan_gradients(
            p, dout, dfinal_state, adjoints, starts, du, ddelta, dz, out, sums, dinitial
        )
        split = ceil_div(partials[0].numel(), 512)
        block = min(32, power_of_2(channels))
        _add_up(p.key, p.stream, split + (states + 2) * ceil_div(channels, block), (
            partials, dB, dC, sums, dA, dD, dbias, partials.shape[0], batch * length,
            batch * p.chunks, channels, states, split,
            512, *((2, 8) if _INTERPRETED else (8, 64)), block,
        ))  # fmt: skip
    return du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial
