"""The CPU backend of the scan: how the work is cut, what memory it takes. Kernels beside it.

A task is one batch row and one group of channels for the whole length. Groups depend on the shape
alone, never on the number of threads, so results have the same bits for any of them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mambakernels import _threads
from mambakernels._simd import LANES
from mambakernels.scan import cpu_backward, cpu_forward
from mambakernels.scan.cpu_tiles import aligned, describe
from mambakernels.scan.reference import stretch_decay

TILE = 64  # steps between saved states
_TASKS = 8  # groups are made so small that there are as many, if there are the channels
_JOINED = 512  # steps of dB and dC added up in one task


def _numbers(dtype: torch.dtype) -> np.dtype:
    return np.dtype(np.float64 if dtype == torch.float64 else np.float32)


def _flat(t: Tensor | None, dtype: np.dtype) -> np.ndarray:
    return np.empty(0, dtype) if t is None else t.view(-1).numpy()


def _table(*tensors: Tensor | None) -> np.ndarray:
    return np.array([describe(t) for t in tensors], np.int64)


def _resets(segment_ids: Tensor | None, reverse: bool) -> np.ndarray:
    """1 where a step must not see the state of the step before it, in the scan's direction."""
    if segment_ids is None:
        return np.empty(0, np.uint8)
    resets = torch.zeros(segment_ids.shape, dtype=torch.uint8)
    changed = segment_ids[:, 1:] != segment_ids[:, :-1]
    if reverse:
        resets[:, :-1] = changed
    else:
        resets[:, 1:] = changed
    return resets.view(-1).numpy()


def _groups(batch: int, channels: int) -> list[tuple[int, int]]:
    """Ranges of channels: whole vectors, as many groups as give `_TASKS` tasks, at least one."""
    blocks = -(-channels // LANES)
    groups = min(blocks, -(-_TASKS // max(batch, 1)))
    width = -(-blocks // groups) * LANES
    return [(first, min(first + width, channels)) for first in range(0, channels, width)]


def saved_shape(batch: int, length: int, channels: int, state: int) -> tuple[int, ...]:
    """The states that enter each tile, as vectors of 16 channels."""
    return batch, -(-length // TILE), -(-channels // LANES), state, LANES


def _scan(
    u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids, delta_softplus, zoh, reverse,
    out, saved, totals,
) -> Tensor:  # fmt: skip
    batch, length, channels = u.shape
    states = A.shape[1]
    numbers = _numbers(A.dtype)
    final_state = A.new_empty(batch, channels, states)
    table = _table(u, delta, B, C, z, out)
    arrays = [_flat(t, numbers) for t in (A, D, delta_bias, initial_state, final_state)]
    arrays += [_flat(saved, numbers), _flat(totals, numbers)]
    resets = _resets(segment_ids, reverse)
    groups = _groups(batch, channels)

    def task(number: int) -> None:
        row, group = divmod(number, len(groups))
        first, last = groups[group]
        size = cpu_forward.scratch_size(TILE, -(-(last - first) // LANES), states)
        cpu_forward.forward(
            table, *arrays, resets, aligned(size, numbers), TILE, row, channels, first, last,
            length, states, delta_softplus, zoh, reverse,
        )  # fmt: skip

    _threads.run(task, batch * len(groups))
    return final_state


def forward(
    u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids, delta_softplus, zoh, reverse,
    *, save=True, chunk_states=None,
):  # fmt: skip
    """One pass does everything, so a summary made before is of no help here."""
    out = torch.empty(u.shape, dtype=u.dtype)
    batch, length, channels = u.shape
    saved = A.new_empty(saved_shape(batch, length, channels, A.shape[1]) if save else (0,))
    final_state = _scan(
        u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids, delta_softplus, zoh,
        reverse, out, saved, None,
    )  # fmt: skip
    return out, final_state, saved


def summary(u, delta, A, B, delta_bias, segment_ids, delta_softplus, zoh, reverse):
    totals = A.new_empty(u.shape[0], u.shape[2])
    state = _scan(
        u, delta, A, B, None, None, None, delta_bias, None, segment_ids, delta_softplus, zoh,
        reverse, None, None, totals,
    )  # fmt: skip
    return stretch_decay(totals, A, segment_ids), state, A.new_empty(0)


def backward(
    dout, dfinal_state, saved, out, u, delta, A, B, C, D, z, delta_bias, initial_state,
    segment_ids, delta_softplus, zoh, reverse,
):  # fmt: skip
    batch, length, channels = u.shape
    states = A.shape[1]
    numbers = _numbers(A.dtype)
    groups = _groups(batch, channels)

    du, ddelta = torch.empty(u.shape, dtype=u.dtype), torch.empty(u.shape, dtype=delta.dtype)
    dz = None if z is None else torch.empty(u.shape, dtype=z.dtype)
    dB, dC = torch.empty(B.shape, dtype=B.dtype), torch.empty(C.shape, dtype=C.dtype)
    parts_B, parts_C = dB, dC
    if len(groups) > 1:
        parts_B = A.new_empty(len(groups) * batch, length, states)
        parts_C = torch.empty_like(parts_B)
    dA = A.new_empty(batch, channels, states)
    dD = None if D is None else A.new_empty(batch, channels)
    dbias = None if delta_bias is None else A.new_empty(batch, channels)
    dinitial = None if initial_state is None else torch.empty_like(dA)

    table = _table(u, delta, B, C, z, dout, du, ddelta, dz, parts_B, parts_C)
    arrays = [_flat(t, numbers) for t in (A, D, delta_bias, dfinal_state, saved)]
    results = [_flat(t, numbers) for t in (dA, dD, dbias, dinitial)]
    resets = _resets(segment_ids, reverse)

    def task(number: int) -> None:
        row, group = divmod(number, len(groups))
        first, last = groups[group]
        size = cpu_backward.scratch_size(TILE, -(-(last - first) // LANES), states)
        cpu_backward.backward(
            table, *arrays, resets, *results, aligned(size, numbers), TILE, row, batch, channels,
            group, first, last, length, states, delta_softplus, zoh, reverse,
        )  # fmt: skip

    _threads.run(task, batch * len(groups))
    if len(groups) > 1:
        joining = _table(parts_B, dB, parts_C, dC)
        pieces = -(-length // _JOINED)

        def join(number: int) -> None:
            row, rest = divmod(number, 2 * pieces)
            which, piece = divmod(rest, pieces)
            start, stop = piece * _JOINED, min((piece + 1) * _JOINED, length)
            scratch = aligned(2 * (stop - start) * -(-states // LANES) * LANES, numbers)
            cpu_backward.join_parts(
                joining, 2 * which, 2 * which + 1, scratch, len(groups), batch, row, start, stop,
                states,
            )  # fmt: skip

        _threads.run(join, batch * 2 * pieces)
    return (
        du, ddelta, _over_batch(dA), dB, dC, _over_batch(dD), dz, _over_batch(dbias), dinitial,
    )  # fmt: skip


def _over_batch(t: Tensor | None) -> Tensor | None:
    """The sum over the first dimension, added one after another whatever the threads."""
    return None if t is None else torch.from_numpy(np.add.reduce(t.numpy(), axis=0))
