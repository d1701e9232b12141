"""The public fused mixer: a Mamba layer that keeps nothing but its input for the backward pass."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor

from mambakernels import _checks, backends
from mambakernels.mixer import op
from mambakernels.scan.op import state_dtype


def mamba_mixer(
    x: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None = None,
    *,
    conv_state: Tensor | None = None,
    ssm_state: Tensor | None = None,
    segment_ids: Tensor | None = None,
    handover: op.Handover | None = None,
    discretization: Literal["euler", "zoh"] = "euler",
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """In-projection, causal convolution, selective scan, gate and out-projection in one operator.

    ::

        u, z = x in_proj^T;   u = silu(conv(u));   low, B, C = u x_proj^T
        delta = softplus(low dt_proj^T + delta_bias)
        y = (scan(u, delta, A, B, C) + D u) silu(z) out_proj^T

    The same as `causal_conv1d`, `selective_scan` and matrix products, to rounding; but autograd
    keeps x alone (2 d_model bytes a position in bfloat16), and on a GPU the scan's states at its
    chunks' starts (about a quarter of a byte a channel and position with 16 states), where the
    parts keep about 2 d_model + 14 channels bytes. The backward computes everything between again
    but for the scan's outputs, which its backward finds on its way where the backend can.

    Args:
        x: (batch, length, d_model).
        in_proj_weight: (2 channels, d_model); in_proj_bias: (2 channels,) or None.
        conv_weight: (channels, width); conv_bias: (channels,) or None.
        x_proj_weight: (rank + 2 state, channels); dt_proj_weight: (channels, rank).
        A: (channels, state), negative; D, delta_bias: (channels,) or None.
        out_proj_weight: (d_model, channels); out_proj_bias: (d_model,) or None.
        conv_state: (batch, width - 1, channels) inputs before position 0, zeros if None.
        ssm_state: (batch, channels, state) state before position 0, zeros if None.
        segment_ids: integers (batch, length); states are reset where they change.
        handover: x is one part of a sequence that several places hold between them: what brings
            the states from the parts before and takes the gradients back (`op.Handover`); both
            states are None then. Costs a summary pass of the scan in the forward pass, which its
            first pass then need not repeat, and one in the backward pass.
        discretization: "euler" or "zoh", as in `selective_scan`.
        backend: "cpu", "triton" or "reference"; None chooses by device.

    Returns:
        y (batch, length, d_model) and both states after the last position; all differentiable,
        once. Under autocast, x and the matrices are cast to its dtype; A, D, delta_bias and the
        scan's state are not.

    Raises:
        TypeError, ValueError: a dtype, shape or device that does not fit, by the argument's name.
        BackendUnavailable: the backend asked for cannot run here.

    Source: arXiv 2312.00752, algorithm 2, figure 3 and section 3.3.2.

    >>> import torch
    >>> from mambakernels import mamba_mixer
    >>> w = lambda *shape: torch.randn(*shape) / 4
    >>> y, conv, ssm = mamba_mixer(w(1, 5, 4), w(16, 4), None, w(8, 3), None, w(5, 8), w(8, 1),
    ...                            -torch.ones(8, 2), None, None, w(4, 8))
    >>> y.shape, conv.shape, ssm.shape
    (torch.Size([1, 5, 4]), torch.Size([1, 2, 8]), torch.Size([1, 8, 2]))
    """
    if discretization not in ("euler", "zoh"):
        raise ValueError(f"discretization={discretization!r} is unknown: use 'euler' or 'zoh'")
    _checks.check_floating("x", x)
    if x.dim() != 3 or x.shape[1] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}: give (batch, length >= 1, d_model)")
    batch, length, d_model = x.shape
    channels, states = A.shape
    rank = dt_proj_weight.shape[-1]
    width = conv_weight.shape[-1]
    expected = (
        ("in_proj_weight", in_proj_weight, (2 * channels, d_model), "(2 channels, d_model)"),
        ("in_proj_bias", in_proj_bias, (2 * channels,), "(2 channels,)"),
        ("conv_weight", conv_weight, (channels, width), "(channels, width)"),
        ("conv_bias", conv_bias, (channels,), "(channels,)"),
        ("x_proj_weight", x_proj_weight, (rank + 2 * states, channels), "(rank + 2 n, channels)"),
        ("dt_proj_weight", dt_proj_weight, (channels, rank), "(channels, rank)"),
        ("D", D, (channels,), "(channels,)"),
        ("delta_bias", delta_bias, (channels,), "(channels,)"),
        ("out_proj_weight", out_proj_weight, (d_model, channels), "(d_model, channels)"),
        ("out_proj_bias", out_proj_bias, (d_model,), "(d_model,)"),
        ("conv_state", conv_state, (batch, width - 1, channels), "(batch, width - 1, channels)"),
        ("ssm_state", ssm_state, (batch, channels, states), "(batch, channels, state)"),
    )
    for name, tensor, shape, legend in expected:
        if tensor is not None:
            _checks.check_floating(name, tensor)
            _checks.check_shape(name, tensor, shape, legend)
            _checks.check_device(name, tensor, x.device, "x")
    if segment_ids is not None:
        _checks.check_segment_ids(segment_ids, batch, length, x.device)
    name = backends.choose(backend, x.device.type, "scan")
    x = _checks.autocast_cast(x)
    wide = state_dtype(x)

    def cast(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(x.dtype)

    def widened(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(wide)

    if handover is not None and not (conv_state is None and ssm_state is None):
        raise ValueError("handover brings the states: leave conv_state and ssm_state None")
    run = op.mamba_mixer if handover is None else partial(op.mamba_mixer_part, handover)
    return run(
        x, cast(in_proj_weight), cast(in_proj_bias), conv_weight, conv_bias, cast(x_proj_weight),
        cast(dt_proj_weight), A.to(wide), widened(D), widened(delta_bias), cast(out_proj_weight),
        cast(out_proj_bias), cast(conv_state), widened(ssm_state), segment_ids,
        discretization == "zoh", name,
    )  # fmt: skip
