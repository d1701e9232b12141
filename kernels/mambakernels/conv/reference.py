"""Causal depthwise convolution, the definition: plain PyTorch, differentiable by autograd.

    out_t = act(bias + sum_k weight[:, k] x_{t - (W - 1) + k})

A tap is left out where a segment starts between it and t. Computed in float32 (float64 for
float64 inputs). Never optimised: every other backend is compared with this one.

Shape suffixes: B batch, L length, D channels, W width, P = W - 1 rows of carried inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def run_starts(segment_ids_BL: Tensor, before: int) -> Tensor:
    """Position at which each position's segment starts; the first one starts at ``-before``."""
    B, L = segment_ids_BL.shape
    position_L = torch.arange(L, device=segment_ids_BL.device)
    starts_BL = torch.full((B, L), -before, dtype=torch.int64, device=segment_ids_BL.device)
    changed_BL = segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1]
    starts_BL[:, 1:] = torch.where(changed_BL, position_L[1:], -before)
    return starts_BL.cummax(dim=1).values if L else starts_BL


def forward(
    x_BLD: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None,
    initial_state_BPD: Tensor | None,
    segment_ids_BL: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Outputs in x's dtype and the last W - 1 inputs, those of earlier segments zeroed."""
    B, L, D = x_BLD.shape
    W = weight_DW.shape[1]
    dtype = torch.float64 if x_BLD.dtype == torch.float64 else torch.float32
    if initial_state_BPD is None:
        initial_state_BPD = x_BLD.new_zeros(B, W - 1, D)
    inputs = torch.cat([initial_state_BPD.to(dtype), x_BLD.to(dtype)], dim=1)  # time + W - 1
    weight = weight_DW.to(dtype)

    total = x_BLD.new_zeros(B, L, D, dtype=dtype)
    if bias_D is not None:
        total = total + bias_D.to(dtype)
    time_L = torch.arange(L, device=x_BLD.device)
    starts_BL = None if segment_ids_BL is None else run_starts(segment_ids_BL, W - 1)
    for k in range(W):
        tap_BLD = inputs[:, k : k + L]
        if starts_BL is not None:
            inside_BL = torch.ge(time_L - (W - 1) + k, starts_BL)
            tap_BLD = torch.where(inside_BL[..., None], tap_BLD, 0)
        total = total + weight[:, k] * tap_BLD
    out = torch.nn.functional.silu(total) if silu else total

    return out.to(x_BLD.dtype), final_state(x_BLD, W, initial_state_BPD, segment_ids_BL)


def final_state(
    x_BLD: Tensor, width: int, initial_state_BPD: Tensor | None, segment_ids_BL: Tensor | None
) -> Tensor:
    """The last width - 1 inputs, from the initial state where x is shorter; earlier segments' 0."""
    B, L, D = x_BLD.shape
    P = width - 1
    last = x_BLD[:, max(0, L - P) :]
    if L < P:
        if initial_state_BPD is None:
            initial_state_BPD = x_BLD.new_zeros(B, P, D)
        last = torch.cat([initial_state_BPD[:, L:].to(x_BLD.dtype), last], dim=1)
    if segment_ids_BL is not None and L > 0:
        time_P = torch.arange(L - P, L, device=x_BLD.device)
        inside_BP = torch.ge(time_P, run_starts(segment_ids_BL, P)[:, -1:])
        return torch.where(inside_BP[..., None], last, 0)
    return last.clone()  # not a view, which would keep all of x alive


def backward(
    dout_BLD: Tensor,
    dfinal_BPD: Tensor | None,
    x_BLD: Tensor,
    weight_DW: Tensor,
    bias_D: Tensor | None,
    initial_state_BPD: Tensor | None,
    segment_ids_BL: Tensor | None,
    silu: bool,
) -> tuple[Tensor, ...]:
    """Gradients of x, weight, bias and initial state, by autograd of the definition."""
    with torch.enable_grad():
        if initial_state_BPD is None:
            initial_state_BPD = x_BLD.new_zeros(
                x_BLD.shape[0], weight_DW.shape[1] - 1, x_BLD.shape[2]
            )
        if bias_D is None:
            bias_D = weight_DW.new_zeros(weight_DW.shape[0])
        given = (x_BLD, weight_DW, bias_D, initial_state_BPD)
        x, weight, bias, initial = (t.detach().requires_grad_() for t in given)
        outputs = forward(x, weight, bias, initial, segment_ids_BL, silu)
    gradients = (dout_BLD, torch.zeros_like(outputs[1]) if dfinal_BPD is None else dfinal_BPD)
    return torch.autograd.grad(outputs, (x, weight, bias, initial), gradients)
