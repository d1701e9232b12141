"""One step of the selective state space recurrence, the definition: differentiable by autograd.

    h' = exp(delta A) h + Bbar u;   y = C h' + D u;   out = y * silu(z)
    euler: Bbar = delta B.   zoh: Bbar = (exp(delta A) - 1) / A * B, delta B where A = 0.

Computed in float32 (float64 for float64 inputs).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from mambakernels.scan.reference import phi1, step_size


def forward(
    state_bdn: Tensor,
    u_bd: Tensor,
    delta_bd: Tensor,
    A_dn: Tensor,
    B_bn: Tensor,
    C_bn: Tensor,
    D_d: Tensor | None,
    z_bd: Tensor | None,
    delta_bias_d: Tensor | None,
    delta_softplus: bool,
    zoh: bool,
) -> tuple[Tensor, Tensor]:
    """The output in u's dtype and the next state in the state's dtype."""
    dtype = state_bdn.dtype
    u = u_bd.to(dtype)
    delta = step_size(delta_bd, delta_bias_d, delta_softplus, dtype)
    delta_A = delta[..., None] * A_dn
    if zoh:
        gain = delta[..., None] * phi1(delta_A)
    else:
        gain = delta[..., None]
    next_state = torch.exp(delta_A) * state_bdn + gain * (u[..., None] * B_bn[:, None].to(dtype))
    y = (next_state * C_bn[:, None].to(dtype)).sum(-1)
    if D_d is not None:
        y = y + D_d * u
    if z_bd is not None:
        y = y * silu(z_bd.to(dtype))
    return y.to(u_bd.dtype), next_state
