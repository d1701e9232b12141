"""The scan's Triton backend: memory and the order of the passes. See `op` for the interface.

Two sets of kernels do the passes: `triton_tuned` where it can, `triton_plain` for the rest and
where Triton is interpreted. They share the layout of every buffer. The passes run as they stand
here once for every kind of problem; `triton_launch` repeats their launches for the next ones.

Saved for the backward pass: `saved` (batch, chunks, state + 1, channels), the state at every
chunk's start and the sum of the chunk's steps, in float32. At 256 steps a chunk and 16 states that
is 0.27 bytes for every (batch, step, channel), an eighth of a bfloat16 input. A sequence of one
chunk saves nothing.
"""

from __future__ import annotations

from types import ModuleType

import torch
import triton
from torch import Tensor

from mambakernels._checks import on_device
from mambakernels.scan import triton_carry, triton_plain, triton_sums
from mambakernels.scan.triton_launch import Plans, stream_of
from mambakernels.scan.triton_problem import (
    Problem,
    Tuning,
    bundle,
    ceil_div,
    choose,
    choose_once,
    identify,
    power_of_2,
)

FILLS_OUTPUTS = True  # of `op`'s interface

_INTERPRETED = triton.knobs.runtime.interpret
triton_tuned: ModuleType | None
try:
    from mambakernels.scan import triton_tuned
except ImportError:  # Gluon is young: another Triton may lack what is used of it
    triton_tuned = None

_plans = Plans()


def saved_shape(batch, length, channels, state, tuning: Tuning | None = None) -> tuple[int, ...]:
    shape = summary_shape(batch, length, channels, state, tuning)
    return shape if shape[1] > 1 else (0,)


def summary_shape(batch, length, channels, state, tuning: Tuning | None = None) -> tuple[int, ...]:
    tuning = tuning or choose(batch, length, channels, state)
    return (batch, ceil_div(length, tuning.chunk), state + 1, channels)


def _passes(p: Problem) -> ModuleType:
    if p.tuning.tuned and not _INTERPRETED and triton_tuned is not None and triton_tuned.can_run(p):
        return triton_tuned
    return triton_plain


def _chunks(p: Problem, rows: int) -> Tensor:
    batch, _, channels, _ = p.sizes
    return p.record.empty(batch, p.chunks, rows, channels)


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
    p.record.launch(triton_carry.carry_states, programs, (
        summaries, p.A, p.initial, starts, final, decay, p.chunks, count,
        channels, states, copy, block, ahead,
    ), num_warps=1)  # fmt: skip


def forward(
    u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids, delta_softplus, zoh, reverse,
    *, save=True, chunk_states=None, tuning: Tuning | None = None,
):  # fmt: skip
    batch, length, channels = u.shape
    states = A.shape[1]
    sizes = tuning or choose_once(batch, length, channels, states)
    whole = summary_shape(batch, length, channels, states, sizes)
    if chunk_states is not None and chunk_states.shape != whole:
        chunk_states = None
    rows = (u, delta, B, C, z, segment_ids)
    edges = (A, D, delta_bias, initial_state, chunk_states)
    key, addresses = identify(u, A, rows, edges, "f", delta_softplus, zoh, reverse, save, tuning)
    out = torch.empty_like(u, memory_format=torch.contiguous_format)
    final = A.new_empty(batch, channels, states)
    saved = A.new_empty(whole if save and whole[1] > 1 else 0)
    with on_device(u):
        plan = _plans.get(key)
        if plan is not None:
            addresses += (out.data_ptr(), final.data_ptr(), saved.data_ptr())
            plan.run(stream_of(u), addresses, A)
        else:
            p = bundle(
                u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids,
                delta_softplus, zoh, reverse, sizes,
            )  # fmt: skip
            _forward_passes(p, chunk_states, out, final, saved if saved.numel() else None)
            _plans.remember(key, p.record.plan((*rows, *edges, out, final, saved)))
    return out, final, saved


def _forward_passes(p: Problem, summaries, out: Tensor, final: Tensor, starts) -> None:
    """starts: where to leave the states at the chunks' starts, or None."""
    passes = _passes(p)
    if not passes.walks_whole(p):
        if starts is None:
            starts = _chunks(p, p.sizes[3] + 1)
        if summaries is None:
            passes.summarise(p, starts, p.chunks - 1)
            summaries = starts
        _carry(p, summaries, starts, None, None, p.chunks - 1)
    passes.scan_outputs(p, starts, out, final)


def summary(
    u, delta, A, B, delta_bias, segment_ids, delta_softplus, zoh, reverse,
    *, tuning: Tuning | None = None,
):  # fmt: skip
    batch, length, channels = u.shape
    states = A.shape[1]
    sizes = tuning or choose_once(batch, length, channels, states)
    rows, edges = (u, delta, B, segment_ids), (A, delta_bias)
    key, addresses = identify(u, A, rows, edges, "s", delta_softplus, zoh, reverse, tuning)
    summaries = A.new_empty(summary_shape(batch, length, channels, states, sizes))
    state, decay = (A.new_empty(batch, channels, states) for _ in range(2))
    with on_device(u):
        plan = _plans.get(key)
        if plan is not None:
            addresses += (summaries.data_ptr(), state.data_ptr(), decay.data_ptr())
            plan.run(stream_of(u), addresses, A)
        else:
            p = bundle(
                u, delta, A, B, None, None, None, delta_bias, None, segment_ids,
                delta_softplus, zoh, reverse, sizes,
            )  # fmt: skip
            _passes(p).summarise(p, summaries, p.chunks)
            _carry(p, summaries, None, state, decay, p.chunks)
            _plans.remember(key, p.record.plan((*rows, *edges, summaries, state, decay)))
    return decay, state, summaries


def backward(
    dout, dfinal_state, saved, out, u, delta, A, B, C, D, z, delta_bias, initial_state,
    segment_ids, delta_softplus, zoh, reverse, *, tuning: Tuning | None = None,
):  # fmt: skip
    rows = (dout, u, delta, B, C, z, segment_ids)
    edges = (A, D, delta_bias, initial_state, dfinal_state, saved, out)
    key, addresses = identify(u, A, rows, edges, "b", delta_softplus, zoh, reverse, tuning)
    gradients = [
        None if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in (u, delta, A, B, C, D, z, delta_bias, initial_state)
    ]
    with on_device(u):
        plan = _plans.get(key)
        if plan is not None:
            addresses += [None if t is None else t.data_ptr() for t in gradients]
            plan.run(stream_of(u), addresses, A)
        else:
            p = bundle(
                u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids,
                delta_softplus, zoh, reverse, tuning,
            )  # fmt: skip
            _backward_passes(p, dout, dfinal_state, saved, out, gradients)
            _plans.remember(key, p.record.plan((*rows, *edges, *gradients)))
    return tuple(gradients)


def _backward_passes(p: Problem, dout, dfinal, saved, out, gradients) -> None:
    """Fills the gradients, and `out` if it is given."""
    batch, length, channels, states = p.sizes
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = gradients
    passes = _passes(p)
    block = min(32, power_of_2(channels))
    adjoints = starts = None
    if p.chunks > 1:
        starts = saved
        adjoints = _chunks(p, states)
        passes.summarise_adjoints(p, dout, adjoints)
        programs, block, ahead = _carry_sizes(p)
        p.record.launch(triton_carry.carry_adjoints, programs, (
            starts, p.A, dfinal, adjoints, p.chunks, channels, states, block, ahead
        ), num_warps=1)  # fmt: skip
    sums = _chunks(p, states + 2)
    partials = passes.scan_gradients(
        p, dout, dfinal, adjoints, starts, du, ddelta, dz, out, sums, dinitial
    )
    split = ceil_div(partials[0].numel(), 512)
    p.record.launch(triton_sums.add_up, split + (states + 2) * ceil_div(channels, block), (
        partials, dB, dC, sums, dA, dD, dbias, partials.shape[0], batch * length,
        batch * p.chunks, channels, states, split,
        512, *((2, 8) if _INTERPRETED else (8, 64)), block,
    ))  # fmt: skip
