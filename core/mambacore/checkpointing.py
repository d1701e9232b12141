"""Activation checkpointing: what a block keeps for its backward pass, and how much at a time.

A block computes ``y = norm(stream); x = branch(y)`` with ``stream = x + residual``. The norm keeps
the stream, so y is a cheap function of what is kept anyway. The modes, from large to small:

- ``none``: everything that autograd asks for.
- ``selective``: what is dear to compute and cheap to store. y is computed again from the stream
  (one pass over it); of the Mamba mixer, the scan's states at its chunks' starts are kept and the
  rest is computed again inside its backward pass, which does that on a GPU anyway; a gated MLP is
  computed again. Costs next to no time.
- ``block``: the stream alone; the branch runs forward once more.

Independently of these, `piece` makes a block pass over a long sequence in pieces with the state
handed over, so that the temporaries of a forward or backward pass are those of a piece.

Gradients are those without checkpointing: bit for bit on a CPU; on a GPU to rounding, because other
kernels compute what is not kept. Pieces change sums over positions, so they agree to rounding.

Where a forward pass holds collectives (context parallelism), `block` runs them again, within the
backward pass. Every rank has the same blocks and autograd visits them in the reverse of the order
in which they were built, so all ranks reach the same collective in the same order; a rank may not
differ from the others in its mode. Pieces would make the ranks wait for each other in turn:
`set_checkpointing` callers that split the sequence over ranks leave them off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from mambacore.errors import UsageError
from mambakernels import rms_norm

if TYPE_CHECKING:
    from mambacore.block import Block, RMSNorm

MODES = ("none", "selective", "block")

Branch = Callable[[Tensor], tuple[Tensor, Any]]


def set_checkpointing(model: nn.Module, mode: str, *, piece: int | None = None) -> None:
    """Choose what every block of `model` keeps for the backward pass.

    A setting of the object, not of its weights: it is not saved, and changes no result.

    Args:
        model: any module with blocks in it (`Backbone`, `MultiScaleBackbone`, what holds one).
        mode: "none", "selective" or "block".
        piece: most positions (batch x length) that a block takes at a time, or None for all. Used
            by mixers whose state does not grow, and not under torch.compile.

    Raises:
        UsageError: an unknown mode, or a piece below 1.

    >>> from mambacore import Backbone, ModelConfig
    >>> backbone = Backbone(ModelConfig(d_model=8, n_layer=2))
    >>> set_checkpointing(backbone, "block", piece=4)
    >>> y, _ = backbone(torch.randn(1, 9, 8))
    >>> y.sum().backward()
    """
    if mode not in MODES:
        raise UsageError(f"checkpointing {mode!r} is not one of {', '.join(MODES)}")
    if piece is not None and piece < 1:
        raise UsageError(f"a piece must hold at least 1 position, not {piece}")
    for block in _blocks(model):
        block.checkpointing, block.piece = mode, piece
        for module in block.mixer.modules():
            if hasattr(module, "keeps_input_alone"):
                setattr(module, "keeps_input_alone", mode != "none")  # noqa: B010


def _blocks(model: nn.Module) -> Iterator[Block]:
    from mambacore.block import Block

    return (module for module in model.modules() if isinstance(module, Block))


def run_branch(
    mode: str, norm: RMSNorm, y: Tensor, stream: Tensor, branch: Branch, *, random: bool
) -> tuple[Tensor, Any]:
    """``branch(y)`` with y = norm of `stream`, keeping what `mode` says.

    Args:
        mode: one of `MODES`.
        norm: what made y.
        y, stream: the norm's two results, both kept by nobody else but the stream by the norm.
        branch: gives a tensor and anything else.
        random: the branch draws random numbers, which must be the same when it runs again.
    """
    if mode == "none" or not torch.is_grad_enabled() or not y.requires_grad:
        return branch(y)
    if mode == "selective":
        return _without_input(norm, y, stream, branch)
    again = _Again(norm, y, branch)
    # Of the arguments it learns which device's random numbers it has to remember.
    result = checkpoint(again, stream.detach(), use_reentrant=False, preserve_rng_state=random)
    again.first = None
    return result  # pyright: ignore[reportReturnType]


def renorm(norm: RMSNorm, stream: Tensor, dtype: torch.dtype) -> Tensor:
    """The norm's y once more, from the stream that it returned: the same bits."""
    with torch.no_grad():
        wide = stream.to(torch.promote_types(stream.dtype, dtype))
        return rms_norm(wide, norm.weight, eps=norm.eps).to(dtype)


class _Again:
    """A branch for `torch.utils.checkpoint`, whose input is computed again, not kept."""

    def __init__(self, norm: RMSNorm, y: Tensor, branch: Branch) -> None:
        self.first: Tensor | None = y
        self.norm, self.dtype = norm, y.dtype
        self.branch = branch

    def __call__(self, stream: Tensor) -> tuple[Tensor, Any]:
        if self.first is not None:
            return self.branch(self.first)
        y = renorm(self.norm, stream, self.dtype)
        return self.branch(y.requires_grad_())


def _without_input(norm: RMSNorm, y: Tensor, stream: Tensor, branch: Branch) -> tuple[Tensor, Any]:
    """Keep what the branch keeps, but compute y itself again when it is asked for."""
    place, count, dtype, kept = y.data_ptr(), y.numel(), y.dtype, stream.detach()

    def pack(tensor: Tensor) -> Tensor | torch.Size:
        same = tensor.data_ptr() == place and tensor.numel() == count and tensor.dtype == dtype
        if same and tensor.is_contiguous():
            return tensor.shape
        return tensor.detach()

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        return packed if isinstance(packed, Tensor) else renorm(norm, kept, dtype).view(packed)

    with saved_tensors_hooks(pack, unpack):
        return branch(y)
