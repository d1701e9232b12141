"""Pre-norm residual block: norm, mixer, and, if asked for, norm and gated MLP."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambacore.config import ModelConfig
from mambacore.mixers import build_mixer
from mambacore.precision import accumulate_dtype
from mambakernels import rms_norm


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, computed in float32, after adding to the residual.

    Zhang and Sennrich 2019 (arXiv 1910.07467).

    >>> y, residual = RMSNorm(4)(torch.full((1, 1, 4), 2.0))
    >>> torch.allclose(y, torch.ones(4)), torch.equal(residual, torch.full((1, 1, 4), 2.0))
    (True, True)
    """

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(
        self, x: Tensor, residual: Tensor | None = None, residual_dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """(norm of x + residual in x's dtype, x + residual in residual_dtype)."""
        return rms_norm(
            x,
            self.weight,
            eps=self.eps,
            residual=residual,
            residual_dtype=residual_dtype,
            return_residual=True,
        )


class GatedMLP(nn.Module):
    """fc2(a * silu(g)) with a, g = fc1(x): SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, 2 * hidden, bias=False)
        self.fc2 = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(a * F.silu(gate))


class Block(nn.Module):
    """x + mixer(norm(x)), then the same with the MLP where `mlp_expand` is not 0.

    Args:
        config: the model's; decides on widths, norm, residual dtype and dropout.
        mixer: name of the mixer.

    Same signature as a mixer. `mix` is the form that the backbone uses: the sum is left to the
    next norm, which adds and normalises in one pass.

    >>> block = Block(ModelConfig(d_model=8), "mamba")
    >>> y, state = block(torch.randn(2, 3, 8))
    >>> y.shape
    torch.Size([2, 3, 8])
    """

    def __init__(self, config: ModelConfig, mixer: str) -> None:
        super().__init__()
        self.residual = config.residual_dtype
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = build_mixer(mixer, config.d_model, **config.mixer_options.get(mixer, {}))
        self.dropout = config.dropout
        self.norm2: RMSNorm | None = None
        self.mlp: GatedMLP | None = None
        if config.mlp_expand:
            self.norm2 = RMSNorm(config.d_model, config.norm_eps)
            self.mlp = GatedMLP(config.d_model, max(1, round(config.mlp_expand * config.d_model)))

    def forward(
        self, x: Tensor, state: Any = None, *, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """(batch, length, d_model) to the same, and the mixer's state."""
        y, residual, state = self.mix(x, None, state, segment_ids)
        return (residual + y).to(x.dtype), state

    def mix(
        self, x: Tensor, residual: Tensor | None, state: Any, segment_ids: Tensor | None
    ) -> tuple[Tensor, Tensor, Any]:
        """(what is to be added, residual so far, state), from the same two addends of before."""
        kept = residual_dtype(self.residual, x.dtype)
        y, stream = self.norm(x, residual, kept)
        y, state = self.mixer(y, state, segment_ids=segment_ids)
        y = F.dropout(y, self.dropout, self.training)
        if self.mlp is not None and self.norm2 is not None:
            y, stream = self.norm2(y, stream, kept)
            y = F.dropout(self.mlp(y), self.dropout, self.training)
        return y, stream, state

    def scale_output(self, factor: float) -> None:
        """Multiply what the block adds to the residual stream (at initialisation)."""
        self.mixer.scale_output(factor)
        if self.mlp is not None:
            with torch.no_grad():
                self.mlp.fc2.weight.mul_(factor)


def residual_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the residual stream in a model whose activations are of `dtype`."""
    if name == "bfloat16":
        return torch.bfloat16
    return dtype if name == "model" else accumulate_dtype(dtype)
