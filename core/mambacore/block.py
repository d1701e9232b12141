"""Pre-norm residual block: norm, mixer, and, if asked for, norm and gated MLP."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mambacore.checkpointing import run_branch
from mambacore.config import ModelConfig
from mambacore.mixers import build_mixer
from mambacore.precision import accumulate_dtype
from mambakernels import rms_norm
from mambakernels._checks import autocast_cast

_ROUND = 1024  # pieces are multiples of this where they are longer: whole chunks of the kernels


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

    Attributes, set by `mambacore.checkpointing.set_checkpointing` (they change no result):
        checkpointing: what is kept for the backward pass: "none", "selective" or "block".
        piece: most positions (batch x length) taken at a time, or None.

    Same signature as a mixer. `mix` is the form that the backbone uses: the sum is left to the
    next norm, which adds and normalises in one pass.

    >>> block = Block(ModelConfig(d_model=8), "mamba")
    >>> y, state = block(torch.randn(2, 3, 8))
    >>> y.shape
    torch.Size([2, 3, 8])
    """

    def __init__(self, config: ModelConfig, mixer: str) -> None:
        super().__init__()
        self.checkpointing = "none"
        self.piece: int | None = None
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
        mode = self.checkpointing
        if torch.compiler.is_compiling():
            # PyTorch's own checkpointing, which its compiler understands, and no pieces.
            inputs = (x, residual, state, segment_ids, "none")
            if mode == "block" and torch.is_grad_enabled():
                return checkpoint(self._mix, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
            return self._mix(*inputs)
        span = self._span(x)
        if span >= x.shape[1]:
            return self._mix(x, residual, state, segment_ids, mode)
        xs = x.split(span, 1)
        none = (None,) * len(xs)
        residuals = none if residual is None else residual.split(span, 1)
        ids = none if segment_ids is None else segment_ids.split(span, 1)
        after, streams = [], []
        for part in zip(xs, residuals, ids, strict=True):
            y, stream, state = self._mix(part[0], part[1], state, part[2], mode)
            after.append(y)
            streams.append(stream)
        return torch.cat(after, 1), torch.cat(streams, 1), state

    def _span(self, x: Tensor) -> int:
        """Positions of a row to take at a time."""
        split = getattr(self.mixer, "sequence_group", None) is not None
        if self.piece is None or not self.mixer.constant_state or split:
            return x.shape[1]
        span = max(1, self.piece // x.shape[0])
        return span if span < _ROUND else span // _ROUND * _ROUND

    def _mix(
        self,
        x: Tensor,
        residual: Tensor | None,
        state: Any,
        segment_ids: Tensor | None,
        mode: str,
    ) -> tuple[Tensor, Tensor, Any]:
        kept = residual_dtype(self.residual, x.dtype)
        y, stream = self.norm(x, residual, kept)
        if mode != "none" and self.mixer.casts_input:
            y = autocast_cast(y)  # so that the mixer keeps this very tensor

        def mixed(y: Tensor) -> tuple[Tensor, Any]:
            y, after = self.mixer(y, state, segment_ids=segment_ids)
            return F.dropout(y, self.dropout, self.training), after

        y, after = run_branch(mode, self.norm, y, stream, mixed, random=self.training)
        if self.mlp is None or self.norm2 is None:
            return y, stream, after
        y, stream = self.norm2(y, stream, kept)
        mode = "none" if mode == "none" else "block"
        y, _ = run_branch(mode, self.norm2, y, stream, self._gated, random=self.training)
        return y, stream, after

    def _gated(self, y: Tensor) -> tuple[Tensor, None]:
        assert self.mlp is not None
        return F.dropout(self.mlp(y), self.dropout, self.training), None

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
