"""The scan's Triton backend: sizes, memory and launches. See `op` for the interface.

Saved for the backward pass: `saved` (batch, chunks, state + 1, channels), the state at every
chunk's start and the sum of the chunk's steps, in float32. At 256 steps a chunk and 16 states that
is 0.27 bytes for every (batch, step, channel), an eighth of a bfloat16 input. A sequence of one
chunk saves nothing.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
from torch import Tensor

from mambakernels.scan import triton_backward, triton_carry, triton_forward
from mambakernels.scan.triton_tuning import Tuning, choose


def saved_shape(batch, length, channels, state, tuning: Tuning | None = None) -> tuple[int, ...]:
    tuning = tuning or choose(batch, length, channels, state)
    chunks = -(-length // tuning.chunk)
    return (batch, chunks, state + 1, channels) if chunks > 1 else (0,)


def summary_shape(batch, length, channels, state, tuning: Tuning | None = None) -> tuple[int, ...]:
    tuning = tuning or choose(batch, length, channels, state)
    return (batch, -(-length // tuning.chunk), state + 1, channels)


def _device(t: Tensor):
    return torch.cuda.device(t.device) if t.is_cuda else nullcontext()


def _strides(*tensors: Tensor | None) -> list[int]:
    """Batch and row strides; of absent tensors, zeros."""
    return [s for t in tensors for s in ((0, 0) if t is None else t.stride()[:2])]


def _blocks(channels: int, state: int, tuning: Tuning) -> dict[str, int]:
    return {"BLOCK_N": triton.next_power_of_2(state), "BLOCK_D": tuning.block_d}


def _summarise(u, delta, A, B, bias, segments, softplus, zoh, reverse, tuning: Tuning) -> Tensor:
    batch, length, channels = u.shape
    state = A.shape[1]
    chunks = triton.cdiv(length, tuning.chunk)
    summaries = A.new_empty(batch, chunks, state + 1, channels)
    grid = (batch * chunks * triton.cdiv(channels, tuning.block_d),)
    triton_forward.summarise[grid](
        u, delta, A, B, bias, segments, summaries,
        length, channels, state, chunks, tuning.chunk,
        *_strides(u, delta, B, segments),
        softplus, zoh, reverse, **_blocks(channels, state, tuning), num_warps=tuning.warps,
    )  # fmt: skip
    return summaries


def _carry(summaries, A, initial, starts, decay=None) -> Tensor:
    batch, chunks, rows, channels = summaries.shape
    final = A.new_empty(batch, channels, rows - 1)
    block = min(128, triton.next_power_of_2(channels))
    grid = (batch * (rows - 1) * triton.cdiv(channels, block),)
    triton_carry.carry_states[grid](
        summaries, A, initial, starts, final, decay, channels, rows - 1, chunks,
        BLOCK_D=block, num_warps=max(1, block // 32),
    )  # fmt: skip
    return final


def forward(
    u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids, delta_softplus, zoh, reverse,
    *, save=True, chunk_states=None, tuning: Tuning | None = None,
):  # fmt: skip
    batch, length, channels = u.shape
    state = A.shape[1]
    tuning = tuning or choose(batch, length, channels, state)
    chunks = triton.cdiv(length, tuning.chunk)
    out = u.new_empty(u.shape)
    with _device(u):
        if chunks == 1:
            starts, final = None, A.new_empty(batch, channels, state)
        else:
            if chunk_states is not None and chunk_states.shape == (
                batch, chunks, state + 1, channels,
            ):  # fmt: skip
                summaries, starts = chunk_states, torch.empty_like(chunk_states)
            else:
                summaries = _summarise(
                    u, delta, A, B, delta_bias, segment_ids, delta_softplus, zoh, reverse, tuning
                )
                starts = summaries
            final = _carry(summaries, A, initial_state, starts)
        grid = (batch * chunks * triton.cdiv(channels, tuning.block_d),)
        triton_forward.scan_outputs[grid](
            u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids, starts, out, final,
            length, channels, state, chunks, tuning.chunk,
            *_strides(u, delta, B, C, z, segment_ids),
            delta_softplus, zoh, reverse, **_blocks(channels, state, tuning),
            num_warps=tuning.warps,
        )  # fmt: skip
    saved = starts if save and starts is not None else A.new_empty(0)
    return out, final, saved


def summary(
    u, delta, A, B, delta_bias, segment_ids, delta_softplus, zoh, reverse,
    *, tuning: Tuning | None = None,
):  # fmt: skip
    tuning = tuning or choose(*u.shape, A.shape[1])
    with _device(u):
        summaries = _summarise(
            u, delta, A, B, delta_bias, segment_ids, delta_softplus, zoh, reverse, tuning
        )
        decay = A.new_empty(u.shape[0], *A.shape)
        state = _carry(summaries, A, None, None, decay)
    return decay, state, summaries


def backward(
    dout, dfinal_state, saved, out, u, delta, A, B, C, D, z, delta_bias, initial_state,
    segment_ids, delta_softplus, zoh, reverse, *, tuning: Tuning | None = None,
):  # fmt: skip
    batch, length, channels = u.shape
    state = A.shape[1]
    tuning = tuning or choose(batch, length, channels, state)
    chunks = triton.cdiv(length, tuning.chunk)
    blocks = triton.cdiv(channels, tuning.block_d)
    sizes = _blocks(channels, state, tuning)
    dinitial = None if initial_state is None else A.new_empty(batch, channels, state)
    with _device(u):
        adjoints = starts = None
        if chunks > 1:
            starts = saved
            adjoints = A.new_empty(batch, chunks, state, channels)
            triton_backward.summarise_adjoints[(batch * chunks * blocks,)](
                dout, delta, A, C, z, delta_bias, segment_ids, adjoints,
                length, channels, state, chunks, tuning.chunk,
                *_strides(dout, delta, C, z, segment_ids),
                delta_softplus, reverse, **sizes, num_warps=tuning.warps,
            )  # fmt: skip
            block = min(128, triton.next_power_of_2(channels))
            triton_carry.carry_adjoints[(batch * state * triton.cdiv(channels, block),)](
                starts, A, dfinal_state, adjoints, dinitial, channels, state, chunks,
                BLOCK_D=block, num_warps=max(1, block // 32),
            )  # fmt: skip
        items = batch * chunks * blocks
        programs = min(items, tuning.programs)
        tile = sizes["BLOCK_N"] * tuning.block_d
        scratch = A.new_empty(
            programs * (triton.cdiv(tuning.chunk, tuning.sub) + tuning.sub) * tile
        )
        du, ddelta = u.new_empty(u.shape), delta.new_empty(delta.shape)
        dz = None if z is None else z.new_empty(z.shape)
        dB, dC = (A.new_empty(blocks, batch, length, state) for _ in range(2))
        sums = A.new_empty(batch, chunks, state + 2, channels)
        triton_backward.scan_gradients[(programs,)](
            dout, dfinal_state, adjoints, starts, u, delta, A, B, C, D, z, delta_bias,
            initial_state, segment_ids, du, ddelta, dz, dB, dC, sums, dinitial, scratch,
            items, programs, length, channels, state, chunks, tuning.chunk, tuning.sub,
            *_strides(dout, u, delta, B, C, z, segment_ids),
            delta_softplus, zoh, reverse, **sizes, num_warps=tuning.warps,
        )  # fmt: skip
    total = sums.sum((0, 1))
    return (
        du, ddelta, total[:state].T.contiguous(), dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype),
        None if D is None else total[state].contiguous(),
        dz,
        None if delta_bias is None else total[state + 1].contiguous(),
        dinitial,
    )  # fmt: skip
