"""The selective scan as it is defined: one step after another, for checking the fast backends.

Letters as in the paper (Gu and Dao 2023, arXiv 2312.00752, algorithm 2), with shape suffixes:
    B batch, L length, D channels, N state size
    u_BLD      the input sequence, one value a channel
    delta_BLD  the step size; after the bias and softplus, how much a step forgets and takes in
    A_DN       the diagonal of the state matrix (negative in a trained model)
    B_BLN      what the input writes into the state; C_BLN what the output reads from it
    h_BDN      the state
`definition` is differentiable by autograd any number of times; `backward` is its derivative
written out, as the kernels compute it. Memory grows with B L D N.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FILLS_OUTPUTS = True  # see `op`
_SERIES_TERMS = 16  # x^k / (k+1)! below 1e-19 at |x| = 0.5


def _series(x: Tensor, coefficients: list[float]) -> Tensor:
    total = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = total * x + coefficient
    return total


def phi1(x: Tensor) -> Tensor:
    """(exp(x) - 1) / x, by its series near zero, where its derivative needs the series too."""
    small = x.abs() < 0.5
    series = _series(
        torch.where(small, x, 0.0), [1 / math.factorial(k + 1) for k in range(_SERIES_TERMS)]
    )
    x_large = torch.where(small, 1.0, x)
    return torch.where(small, series, torch.expm1(x_large) / x_large)


def phi1_derivative(x: Tensor) -> Tensor:
    """d phi1 / dx = (exp(x) - phi1(x)) / x."""
    small = x.abs() < 0.5
    series = _series(
        torch.where(small, x, 0.0), [(k + 1) / math.factorial(k + 2) for k in range(_SERIES_TERMS)]
    )
    x_large = torch.where(small, 1.0, x)
    return torch.where(small, series, (torch.exp(x_large) - phi1(x_large)) / x_large)


def step_size(
    delta: Tensor, delta_bias: Tensor | None, softplus: bool, dtype: torch.dtype
) -> Tensor:
    """delta as the recurrence uses it: with its bias, through softplus, in the state's dtype."""
    delta = delta.to(dtype)
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)
    return F.softplus(delta) if softplus else delta


def definition(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    segment_ids: Tensor | None = None,
    delta_softplus: bool = False,
    zoh: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Output (in u's dtype) and final state of the selective scan, differentiable by autograd."""
    if reverse:
        u, delta, B, C = (t.flip(1) for t in (u, delta, B, C))
        z = None if z is None else z.flip(1)
        segment_ids = None if segment_ids is None else segment_ids.flip(1)
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    batch, length, channels = u.shape
    u_BLD = u.to(dtype)
    delta_BLD = step_size(delta, delta_bias, delta_softplus, dtype)
    A_DN, B_BLN, C_BLN = A.to(dtype), B.to(dtype), C.to(dtype)

    if initial_state is None:
        h_BDN = u_BLD.new_zeros(batch, channels, A.shape[1])
    else:
        h_BDN = initial_state.to(dtype).clone()
    outputs = []
    for t in range(length):
        if segment_ids is not None and t > 0:
            same = segment_ids[:, t] == segment_ids[:, t - 1]
            h_BDN = torch.where(same[:, None, None], h_BDN, 0.0)
        x_BDN = delta_BLD[:, t, :, None] * A_DN
        taken_in = delta_BLD[:, t] * u_BLD[:, t]
        Bu_BDN = taken_in[:, :, None] * B_BLN[:, t, None, :]
        if zoh:
            Bu_BDN = phi1(x_BDN) * Bu_BDN
        h_BDN = torch.exp(x_BDN) * h_BDN + Bu_BDN
        outputs.append((h_BDN * C_BLN[:, t, None, :]).sum(-1))

    y_BLD = torch.stack(outputs, 1) if outputs else u_BLD.clone()
    if D is not None:
        y_BLD = y_BLD + D.to(dtype) * u_BLD
    if z is not None:
        y_BLD = y_BLD * F.silu(z.to(dtype))
    if reverse:
        y_BLD = y_BLD.flip(1)
    return y_BLD.to(u.dtype), h_BDN


def stretch_decay(total_BD: Tensor, A_DN: Tensor, segment_ids: Tensor | None) -> Tensor:
    """What a stretch multiplies the state by: exp(A sum(delta)), or 0 if a segment changes."""
    decay_BDN = torch.exp(total_BD[:, :, None] * A_DN)
    if segment_ids is not None and segment_ids.shape[1] > 1:
        whole = (segment_ids[:, 1:] == segment_ids[:, :-1]).all(1)
        decay_BDN = torch.where(whole[:, None, None], decay_BDN, 0.0)
    return decay_BDN


def saved_shape(batch: int, length: int, channels: int, state: int) -> tuple[int, ...]:
    """The reference saves no states: its backward runs the definition again."""
    return (0,)


def forward(
    u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids, delta_softplus, zoh, reverse,
    *, save=True, chunk_states=None,
):  # fmt: skip
    out, final_state = definition(
        u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids,
        delta_softplus, zoh, reverse,
    )  # fmt: skip
    return out, final_state, final_state.new_empty(0)


def backward(
    dout, dfinal_state, saved, out, u, delta, A, B, C, D, z, delta_bias, initial_state,
    segment_ids, delta_softplus, zoh, reverse,
):  # fmt: skip
    """The definition run again with every state kept, then its derivative from the last step."""
    if reverse:
        u, delta, B, C, dout = (t.flip(1) for t in (u, delta, B, C, dout))
        z = None if z is None else z.flip(1)
        segment_ids = None if segment_ids is None else segment_ids.flip(1)
    batch, length, channels = u.shape
    A_DN = A
    u_BLD, B_BLN, C_BLN = (t.to(A.dtype) for t in (u, B, C))
    delta_BLD = step_size(delta, delta_bias, delta_softplus, A.dtype)
    taken_in_BLD = delta_BLD * u_BLD

    h_BDN = A.new_zeros(batch, channels, A.shape[1]) if initial_state is None else initial_state
    before = []  # the state that enters each step, after the reset
    for t in range(length + 1):
        if segment_ids is not None and 0 < t < length:
            same = segment_ids[:, t] == segment_ids[:, t - 1]
            h_BDN = torch.where(same[:, None, None], h_BDN, 0.0)
        before.append(h_BDN)
        if t < length:
            x_BDN = delta_BLD[:, t, :, None] * A_DN
            Bu_BDN = taken_in_BLD[:, t, :, None] * B_BLN[:, t, None, :]
            h_BDN = torch.exp(x_BDN) * h_BDN + (phi1(x_BDN) * Bu_BDN if zoh else Bu_BDN)

    dy_BLD = dout.to(A.dtype)
    dz = silu = None
    if z is not None:
        z_BLD = z.to(A.dtype)
        gate = torch.sigmoid(z_BLD)
        silu, dsilu = z_BLD * gate, gate * (1 + z_BLD * (1 - gate))
        dz, dy_BLD = dy_BLD * dsilu, dy_BLD * silu  # dz lacks the factor y, found below
    du_BLD = torch.zeros_like(u_BLD) if D is None else dy_BLD * D
    ddelta_BLD, y_BLD = torch.zeros_like(u_BLD), torch.zeros_like(u_BLD)
    dA_BDN = A.new_zeros(batch, channels, A.shape[1])
    dB_BLN, dC_BLN = torch.zeros_like(B_BLN), torch.zeros_like(C_BLN)
    g_BDN = torch.zeros_like(dA_BDN) if dfinal_state is None else dfinal_state
    for t in reversed(range(length)):
        if segment_ids is not None and t + 1 < length:
            same = segment_ids[:, t + 1] == segment_ids[:, t]
            g_BDN = torch.where(same[:, None, None], g_BDN, 0.0)
        x_BDN = delta_BLD[:, t, :, None] * A_DN
        a_BDN = torch.exp(x_BDN)
        Bu_BDN = taken_in_BLD[:, t, :, None] * B_BLN[:, t, None, :]
        h_BDN = a_BDN * before[t] + (phi1(x_BDN) * Bu_BDN if zoh else Bu_BDN)
        y_BLD[:, t] = (h_BDN * C_BLN[:, t, None, :]).sum(-1)
        g_BDN = g_BDN + dy_BLD[:, t, :, None] * C_BLN[:, t, None, :]
        dC_BLN[:, t] = (dy_BLD[:, t, :, None] * h_BDN).sum(1)
        dx_BDN = g_BDN * a_BDN * before[t]
        dBu_BDN = g_BDN
        if zoh:
            dx_BDN = dx_BDN + g_BDN * Bu_BDN * phi1_derivative(x_BDN)
            dBu_BDN = g_BDN * phi1(x_BDN)
        dB_BLN[:, t] = (dBu_BDN * taken_in_BLD[:, t, :, None]).sum(1)
        dtaken_BD = (dBu_BDN * B_BLN[:, t, None, :]).sum(-1)
        du_BLD[:, t] += dtaken_BD * delta_BLD[:, t]
        ddelta_BLD[:, t] = dtaken_BD * u_BLD[:, t] + (dx_BDN * A_DN).sum(-1)
        dA_BDN += dx_BDN * delta_BLD[:, t, :, None]
        g_BDN = a_BDN * g_BDN

    if delta_softplus:
        ddelta_BLD = ddelta_BLD * torch.sigmoid(step_size(delta, delta_bias, False, A.dtype))
    if D is not None:
        y_BLD = y_BLD + D * u_BLD
    if out is not None:
        gated_BLD = y_BLD if silu is None else y_BLD * silu
        out.copy_(gated_BLD.flip(1) if reverse else gated_BLD)
    along = [du_BLD, ddelta_BLD, dB_BLN, dC_BLN, None if dz is None else dz * y_BLD]
    if reverse:
        along = [t if t is None else t.flip(1) for t in along]
    dtypes = (u.dtype, delta.dtype, B.dtype, C.dtype, u.dtype if z is None else z.dtype)
    du, ddelta, dB, dC, dz = (
        t if t is None else t.to(dtype) for t, dtype in zip(along, dtypes, strict=True)
    )
    return (
        du, ddelta, dA_BDN.sum(0), dB, dC,
        None if D is None else (dy_BLD * u_BLD).sum((0, 1)),
        dz,
        None if delta_bias is None else ddelta_BLD.sum((0, 1)),
        None if initial_state is None else g_BDN.clone(),
    )  # fmt: skip


def summary(u, delta, A, B, delta_bias, segment_ids, delta_softplus, zoh, reverse):
    _, state = definition(
        u, delta, A, B, torch.zeros_like(B), None, None, delta_bias, None, segment_ids,
        delta_softplus, zoh, reverse,
    )  # fmt: skip
    total_BD = step_size(delta, delta_bias, delta_softplus, A.dtype).sum(1)
    return stretch_decay(total_BD, A, segment_ids), state, state.new_empty(0)
