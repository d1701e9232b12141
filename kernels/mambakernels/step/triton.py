"""One decoding step in plain Triton: a program holds all states of a block of channels.

Reads and writes the state once; everything else is small.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mambakernels._checks import on_device
from mambakernels.scan.triton_primitives import phi, sigmoid, step_size


@triton.jit
def _step(
    state, u, delta, A, B, C, D, z, bias, out, following, channels, states,
    u_row, delta_row, B_row, C_row, z_row,
    SOFTPLUS: tl.constexpr, ZOH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    batch = tl.cast(tl.program_id(0), tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_d = d < channels
    in_n = n < states
    inside = in_d[:, None] & in_n[None, :]
    A_DN = tl.load(A + d[:, None] * states + n[None, :], mask=inside, other=0.0)
    u_D = tl.load(u + batch * u_row + d, mask=in_d, other=0.0).to(A_DN.dtype)
    delta_D = tl.load(delta + batch * delta_row + d, mask=in_d, other=0.0).to(A_DN.dtype)
    B_N = tl.load(B + batch * B_row + n, mask=in_n, other=0.0).to(A_DN.dtype)
    C_N = tl.load(C + batch * C_row + n, mask=in_n, other=0.0).to(A_DN.dtype)
    if bias is not None:
        bias_D = tl.load(bias + d, mask=in_d, other=0.0)
    else:
        bias_D = tl.zeros([BLOCK_D], A_DN.dtype)
    step, _ = step_size(delta_D, bias_D, SOFTPLUS)
    exponent = A_DN * step[:, None]
    decay = tl.exp(exponent)
    taken = (step * u_D)[:, None] * B_N[None, :]
    if ZOH:
        phi1, _ = phi(exponent, decay)
        taken = taken * phi1
    place = (batch * channels + d[:, None]) * states + n[None, :]
    h = decay * tl.load(state + place, mask=inside, other=0.0) + taken
    tl.store(following + place, h, mask=inside)
    y = tl.sum(h * C_N[None, :], 1)
    if D is not None:
        y += tl.load(D + d, mask=in_d, other=0.0) * u_D
    if z is not None:
        z_D = tl.load(z + batch * z_row + d, mask=in_d, other=0.0).to(A_DN.dtype)
        y = y * z_D * sigmoid(z_D)
    tl.store(out + batch * channels + d, y.to(out.dtype.element_ty), mask=in_d)


def forward(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    zoh: bool,
    out: Tensor,
    next_state: Tensor,
) -> None:
    """Fill `out` and `next_state`, both contiguous; the latter may be `state` itself."""
    batch, channels, states = state.shape
    if not state.numel():
        return
    u, delta, B, C = _rows(u), _rows(delta), _rows(B), _rows(C)
    z = None if z is None else _rows(z)
    block_n = triton.next_power_of_2(states)
    block_d = min(triton.next_power_of_2(channels), max(1, 1024 // block_n))
    with on_device(state):
        _step[(batch, triton.cdiv(channels, block_d))](
            state.contiguous(), u, delta, A.contiguous(), B, C, D, z, delta_bias, out, next_state,
            channels, states, u.stride(0), delta.stride(0), B.stride(0), C.stride(0),
            0 if z is None else z.stride(0),
            SOFTPLUS=delta_softplus, ZOH=zoh, BLOCK_N=block_n, BLOCK_D=block_d,
        )  # fmt: skip


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
