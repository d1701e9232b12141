"""The public root-mean-square norm with residual: checks and the choice of a backend."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from mambakernels import _checks, backends
from mambakernels.norm import op, reference


@overload
def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    residual_dtype: torch.dtype | None = None,
    return_residual: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    residual_dtype: torch.dtype | None = None,
    return_residual: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    residual_dtype: torch.dtype | None = None,
    return_residual: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Add x to the residual stream and divide by the root mean square over the last dimension.

        r = x + residual                            (rounded to residual_dtype)
        y = r / sqrt(mean(r^2) + eps) * weight

    Args:
        x: (..., channels), float32, bfloat16, float16 or float64, at least one dimension.
        weight: (channels,), any floating dtype.
        eps: added to the mean square; >= 0.
        residual: shaped as x, any floating dtype, or None.
        residual_dtype: the dtype of r; by default the residual's, or x's where there is none.
        return_residual: also return r, the next layer's `residual`.
        backend: "cpu", "triton", "reference", or None to choose by device.

    Returns:
        y in x's dtype, or (y, r). With neither `residual` nor `residual_dtype`, r is x itself.

    Computed in float32, in float64 where x or r are float64, also under autocast, which casts
    nothing here. Differentiable once in x, weight and residual, through y and r; the same inputs
    give the same bits. The "reference" backend is plain PyTorch, differentiable any number of
    times.

    Raises:
        TypeError: a dtype that is not accepted. ValueError: a shape, device or eps that does not
        fit. BackendUnavailable: the backend asked for cannot run here, and why.

    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.

    >>> import torch
    >>> from mambakernels import rms_norm
    >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.ones(2), eps=0.0) * 12.5**0.5
    tensor([[3., 4.]])
    """
    _checks.check_floating("x", x)
    if x.dim() == 0:
        raise ValueError("x has no dimension; (..., channels) is needed")
    _checks.check_floating("weight", weight)
    _checks.check_shape("weight", weight, (x.shape[-1],), "(channels,)")
    _checks.check_device("weight", weight, x.device, "x")
    if residual is not None:
        _checks.check_floating("residual", residual)
        _checks.check_shape("residual", residual, tuple(x.shape), "the shape of x")
        _checks.check_device("residual", residual, x.device, "x")
    if not eps >= 0:
        raise ValueError(f"eps={eps!r} is not accepted: a number >= 0 is needed")
    if residual_dtype is None:
        residual_dtype = x.dtype if residual is None else residual.dtype
    elif residual_dtype not in _checks.FLOATING:
        raise TypeError(
            f"residual_dtype={residual_dtype} is not accepted: use torch.float32, torch.bfloat16, "
            "torch.float16 or torch.float64"
        )
    name = backends.choose(backend, x.device.type, "norm")
    if name == "reference":
        y, residual_out = reference.forward(x, weight, residual, eps, residual_dtype)
    else:
        y, residual_out = op.rms_norm(x, weight, residual, float(eps), residual_dtype, name)
        if residual is None and residual_dtype == x.dtype:
            residual_out = x
    return (y, residual_out) if return_residual else y
