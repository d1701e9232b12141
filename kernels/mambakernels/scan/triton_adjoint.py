"""The gradient of the initial state alone, by the backward pass's first kernel.

    dh_0 = sum_t exp(A (delta_0 + .. + delta_t)) C_t dy_t,   dy = dout silu(z)

What a stretch of a split sequence has to tell the stretches before it. `summarise_adjoints` does
the sums of all chunks but the first, reading delta, dout, z and C once; the first chunk and the
joining are plain PyTorch over the chunks, (batch, chunks, state, channels) numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mambakernels.scan import triton
from mambakernels.scan.reference import step_size
from mambakernels.scan.triton_problem import Tuning, bundle

_NUMBERS = 1 << 26  # of the first chunks' largest temporary


def adjoint(
    dout: Tensor,
    saved: Tensor,
    delta: Tensor,
    A: Tensor,
    C: Tensor,
    z: Tensor | None,
    delta_bias: Tensor | None,
    segment_ids: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    tuning: Tuning | None = None,
) -> Tensor:
    """(batch, channels, state), the arguments being those of the scan and of its backward.

    saved: of the forward pass, for the sums of steps of its chunks.
    """
    # u and B play no part; dout and C stand in for them.
    p = bundle(
        dout, delta, A, C, C, None, z, delta_bias, None, segment_ids, delta_softplus, False,
        reverse, tuning,
    )  # fmt: skip
    total, found = _first_chunk(
        dout, delta, A, C, z, delta_bias, segment_ids, delta_softplus, reverse, p.tuning.chunk
    )
    if p.chunks == 1:
        return found
    batch, _, channels, states = p.sizes
    own = A.new_empty(batch, p.chunks, states, channels)
    with torch.cuda.device_of(dout):
        triton._passes(p).summarise_adjoints(p, dout, own)
    before = torch.cat([total[:, None], saved[:, 1:-1, -1]], dim=1).cumsum(1)[:, :, None]
    decay = torch.exp(before * A.t()).masked_fill_(before.isinf(), 0.0)
    return found + (decay.mul_(own[:, 1:])).sum(1).transpose(1, 2)


def _first_chunk(
    dout, delta, A, C, z, delta_bias, segment_ids, softplus, reverse, steps
) -> tuple[Tensor, Tensor]:
    """Its sum of steps (batch, channels), infinite where a segment changes, and its own sum."""
    rows = [dout, delta, C, z, segment_ids]
    part = slice(-steps, None) if reverse else slice(steps)
    rows = [t if t is None else t[:, part] for t in rows]
    if reverse:
        rows = [t if t is None else t.flip(1) for t in rows]
    dout, delta, C, z, segment_ids = rows
    so_far = step_size(delta, delta_bias, softplus, A.dtype).cumsum(1)
    dy = dout.to(A.dtype)
    if z is not None:
        dy = dy * torch.nn.functional.silu(z.to(A.dtype))
    total = so_far[:, -1]
    if segment_ids is not None:
        goes_on = (segment_ids == segment_ids[:, :1]).cumprod(1).bool()
        dy = torch.where(goes_on[..., None], dy, 0.0)
        total = torch.where(goes_on[:, -1:], total, torch.inf)
    rows_at_once = max(1, _NUMBERS // (so_far[0].numel() * A.shape[1]))
    sums = [
        (torch.exp(t[..., None] * A).mul_(y[..., None] * c.to(A.dtype)[:, :, None])).sum(1)
        for t, y, c in zip(*(x.split(rows_at_once) for x in (so_far, dy, C)), strict=True)
    ]
    return total, torch.cat(sums)
