"""The public causal depthwise convolution: checks, autocast and the choice of a backend."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from mambakernels import _checks, backends
from mambakernels.conv import op, reference


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state: Tensor | None = None,
    return_final_state: Literal[False] = False,
    segment_ids: Tensor | None = None,
    backend: str | None = None,
) -> Tensor: ...
@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state: Tensor | None = None,
    return_final_state: Literal[True],
    segment_ids: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    segment_ids: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve each channel with its own short filter over the present and the past.

        out_t = act(bias + sum_k weight[:, k] x_{t - (width - 1) + k})

    Args:
        x: (batch, length, channels), float32, bfloat16, float16 or float64. Any length, 0
            included, also shorter than the filter. Rows may be slices of a wider tensor.
        weight: (channels, width), any width >= 1; `weight[:, -1]` meets the present. Its dtype may
            differ from x's; sums are float32 (float64 for float64 x).
        bias: (channels,) or None.
        activation: None, or "silu" (y * sigmoid(y)).
        initial_state: (batch, width - 1, channels), the inputs just before position 0, oldest
            first; they belong to position 0's segment. None stands for zeros.
        return_final_state: also return the last width - 1 inputs, which as `initial_state` continue
            the sequence: chunks equal the whole.
        segment_ids: (batch, length) integers. Where they change a new sequence starts, and no tap
            reaches over that point; in the final state, rows of earlier segments are zero.
        backend: "cpu", "triton", "reference", or None to choose by device.

    Returns:
        out (batch, length, channels) in x's dtype, or (out, final_state), final_state in x's dtype.

    Under autocast x and initial_state are cast to the autocast dtype (float64 is left alone); the
    weights keep theirs. Differentiable once in x, weight, bias, initial_state, through the output
    and the final state; the same inputs give the same bits. The "reference" backend is plain
    PyTorch, differentiable any number of times.

    Raises:
        TypeError: a dtype that is not accepted. ValueError: a shape, device or activation that does
        not fit. BackendUnavailable: the backend asked for cannot run here, and why.

    Source: the short convolution of Mamba (Gu and Dao 2023, arXiv 2312.00752, figure 3).

    >>> import torch
    >>> from mambakernels import causal_conv1d
    >>> x = torch.tensor([[[1.0], [2.0], [3.0]]])
    >>> out, state = causal_conv1d(x, torch.tensor([[10.0, 1.0]]), return_final_state=True)
    >>> out.flatten().tolist(), state.flatten().tolist()
    ([1.0, 12.0, 23.0], [3.0])
    """
    _check(x, weight, bias, activation, initial_state, segment_ids)
    name = backends.choose(backend, x.device.type, "conv")
    x = _checks.autocast_cast(x)
    if initial_state is not None:
        initial_state = initial_state.to(x.dtype)
    run = reference.forward if name == "reference" else op.causal_conv1d
    options = () if name == "reference" else (name,)
    out, final = run(x, weight, bias, initial_state, segment_ids, activation == "silu", *options)
    return (out, final) if return_final_state else out


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    segment_ids: Tensor | None,
) -> None:
    if activation not in (None, "silu"):
        raise ValueError(f"activation={activation!r} is unknown: use None or 'silu'")
    _checks.check_floating("x", x)
    if x.dim() != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}; (batch, length, channels) is needed")
    batch, length, channels = x.shape
    floating = {"weight": weight, "bias": bias, "initial_state": initial_state}
    for name, tensor in floating.items():
        if tensor is not None:
            _checks.check_floating(name, tensor)
            _checks.check_device(name, tensor, x.device, "x")
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] < 1:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; (channels, width) = ({channels}, at least 1) "
            "is needed here"
        )
    if bias is not None:
        _checks.check_shape("bias", bias, (channels,), "(channels,)")
    if initial_state is not None:
        rows = weight.shape[1] - 1
        shape = (batch, rows, channels)
        _checks.check_shape("initial_state", initial_state, shape, "(batch, width - 1, channels)")
    if segment_ids is not None:
        _checks.check_segment_ids(segment_ids, batch, length, x.device)
