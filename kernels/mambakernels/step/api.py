"""The public decoding step: checks, the choice of a backend, little overhead."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mambakernels import _checks, backends
from mambakernels.step import op, reference


def selective_state_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    discretization: Literal["euler", "zoh"] = "euler",
    inplace: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of the selective scan for a batch of streams, as decoding takes it.

        h' = exp(delta A) h + Bbar u;   y = C h' + D u;   out = y * silu(z)
        euler: Bbar = delta B.   zoh: Bbar = (exp(delta A) - 1) / A * B

    Args:
        state: (batch, channels, state), float32, or float64 for float64 inputs.
        u, delta, z: (batch, channels); delta before its bias and softplus; z may be None.
        A: (channels, state), negative for a stable system, in the state's dtype.
        B, C: (batch, state).
        D, delta_bias: (channels,) in the state's dtype, or None.
        delta_softplus: whether delta is softplus(delta + delta_bias).
        discretization: "euler" (as in Mamba's code) or "zoh" (zero-order hold, the paper's
            equation 4).
        inplace: write the next state into `state`, which saves a copy of it; refused where a
            gradient is needed.
        backend: "cpu", "triton", "reference", or None to choose by device.

    Returns:
        (out (batch, channels) in u's dtype, next state in the state's dtype).

    Calling it step by step equals `selective_scan` to rounding. Where a gradient is needed it runs
    as plain PyTorch, differentiable any number of times, on every backend.

    Raises:
        TypeError: a dtype that is not accepted. ValueError: a shape, device or discretization that
        does not fit. BackendUnavailable: the backend asked for cannot run here, and why.

    Source: Gu and Dao 2023, arXiv 2312.00752, algorithm 2, one step of its recurrence.

    >>> import torch
    >>> from mambakernels import selective_state_step
    >>> one = torch.ones(1, 1)
    >>> out, state = selective_state_step(torch.zeros(1, 1, 1), 3 * one, one, -one, one, one)
    >>> out.item(), state.item()
    (3.0, 3.0)
    """
    if discretization not in ("euler", "zoh"):
        raise ValueError(f"discretization={discretization!r} is unknown: use 'euler' or 'zoh'")
    _check(state, u, delta, A, B, C, D, z, delta_bias)
    zoh = discretization == "zoh"
    tensors = (state, u, delta, A, B, C, D, z, delta_bias)
    name = backends.choose(backend, state.device.type, "step")
    if _checks.needs_gradient(*tensors):
        if inplace:
            raise ValueError(
                "inplace=True overwrites the state that the gradient needs: use inplace=False, or "
                "torch.no_grad() when decoding"
            )
        return reference.forward(*tensors, delta_softplus, zoh)
    if name == "reference":
        out, next_state = reference.forward(*tensors, delta_softplus, zoh)
    elif not _checks.untraced(state):
        out, next_state = op.selective_state_step(*tensors, delta_softplus, zoh, name)
    else:
        out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
        direct = inplace and state.is_contiguous()
        next_state = state if direct else state.new_empty(state.shape)
        with torch.no_grad():
            op.load(name).forward(*tensors, delta_softplus, zoh, out, next_state)
    if inplace and next_state is not state:
        next_state = state.copy_(next_state)
    return out, next_state


def _check(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    # written for few operations on the way of a right call: decoding makes thousands a second
    named = (
        ("state", state, 3),
        ("u", u, 2),
        ("delta", delta, 2),
        ("A", A, 2),
        ("B", B, 2),
        ("C", C, 2),
        ("D", D, 1),
        ("z", z, 2),
        ("delta_bias", delta_bias, 1),
    )
    device = state.device
    for name, tensor, dimensions in named:
        if tensor is None:
            continue
        _checks.check_floating(name, tensor)
        if tensor.dim() != dimensions:
            raise ValueError(f"{name} has {tensor.dim()} dimensions; {dimensions} are needed")
        if tensor.device != device:
            _checks.check_device(name, tensor, device, "state")
    batch, channels, size = state.shape
    rows, maps = (batch, channels), (batch, size)
    _shape("u", u, rows, "(batch, channels)")
    _shape("delta", delta, rows, "(batch, channels)")
    _shape("A", A, (channels, size), "(channels, state)")
    _shape("B", B, maps, "(batch, state)")
    _shape("C", C, maps, "(batch, state)")
    _shape("D", D, (channels,), "(channels,)")
    _shape("z", z, rows, "(batch, channels)")
    _shape("delta_bias", delta_bias, (channels,), "(channels,)")
    wanted = torch.float64 if u.dtype == torch.float64 else torch.float32
    for name, tensor in (("state", state), ("A", A), ("D", D), ("delta_bias", delta_bias)):
        if tensor is not None and tensor.dtype != wanted:
            raise TypeError(
                f"{name} has dtype {tensor.dtype}; {wanted} is needed with u in {u.dtype}: convert "
                f"it with .to({wanted})"
            )


def _shape(name: str, tensor: Tensor | None, shape: tuple[int, ...], legend: str) -> None:
    if tensor is not None and tensor.shape != shape:
        _checks.check_shape(name, tensor, shape, legend)
