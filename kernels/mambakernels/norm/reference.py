"""Root-mean-square norm with the residual added, the definition: differentiable by autograd.

    r = x + residual          (rounded to residual_dtype)
    y = r * rsqrt(mean(r^2) + eps) * weight

Computed in float32 (float64 for float64 inputs). Never optimised.
"""

from __future__ import annotations

import torch
from torch import Tensor


def forward(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, residual_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """y in x's dtype and the residual stream r in ``residual_dtype``."""
    dtype = torch.float64 if torch.float64 in (x.dtype, residual_dtype) else torch.float32
    total = x.to(dtype)
    if residual is not None:
        total = total + residual.to(dtype)
    residual_out = total.to(residual_dtype)
    r = residual_out.to(dtype)
    scale = torch.rsqrt(r.square().mean(dim=-1, keepdim=True) + eps)
    return (r * scale * weight.to(dtype)).to(x.dtype), residual_out
