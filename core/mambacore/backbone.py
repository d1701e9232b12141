"""A stack of blocks: vectors in, vectors out, with one state a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mambacore.block import Block, RMSNorm, residual_dtype
from mambacore.config import ModelConfig
from mambacore.errors import UsageError
from mambacore.init import initialise_linear


class Backbone(nn.Module):
    """Blocks and a final norm: ``forward(x, state=None, *, segment_ids=None) -> (y, state)``.

    x and y are (batch, length, d_model). The state is a tuple of the layers' states; with causal
    mixers, the whole sequence, chunks and single steps agree to rounding. With a mixer that needs
    the whole sequence (`causal` is False) the state is None and none is accepted.

    Initialisation: biases at zero but for delta's; every output into the residual stream scaled by
    1 / sqrt(number of such outputs), so that the stream's variance does not grow with depth
    (the GPT-2 scheme that Mamba uses).

    Args:
        config: widths, mixers and the rest; mixer names and options are checked here.

    >>> from mambacore import state as states
    >>> backbone = Backbone(ModelConfig(d_model=8, layers=("mamba", "s4d"), n_layer=2))
    >>> y, state = backbone(torch.randn(2, 5, 8))
    >>> y, state = backbone(torch.randn(2, 1, 8), states.detach(state))
    >>> y.shape, len(state)
    (torch.Size([2, 1, 8]), 2)
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(config, name) for name in config.layer_names)
        self.norm_f = RMSNorm(config.d_model, config.norm_eps)
        initialise_linear(self)
        outputs = config.n_layer * (2 if config.mlp_expand else 1)
        for block in self.blocks:
            block.scale_output(outputs**-0.5)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The layers, typed."""
        return tuple(block for block in self.layers if isinstance(block, Block))

    @property
    def causal(self) -> bool:
        """No output depends on a later input, so that a state can be carried."""
        return all(block.mixer.causal for block in self.blocks)

    def forward(
        self,
        x: Tensor,
        state: tuple[Any, ...] | None = None,
        *,
        segment_ids: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Any, ...] | None]:
        """Raises UsageError for a state of another model, or for one where none can be used."""
        states = self._layer_states(state)
        residual: Tensor | None = None
        after = []
        for block, layer_state in zip(self.blocks, states, strict=True):
            x, residual, layer_state = block.mix(x, residual, layer_state, segment_ids)
            after.append(layer_state)
        kept = residual_dtype(self.config.residual_dtype, x.dtype)
        x, _ = self.norm_f(x, residual, kept)
        return x, tuple(after) if self.causal else None

    def initial_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Any, ...]:
        """The state before the first position; the same as passing None."""
        self._require_causal()
        return tuple(block.mixer.initial_state(batch, device, dtype) for block in self.blocks)

    def _layer_states(self, state: tuple[Any, ...] | None) -> tuple[Any, ...]:
        if state is None:
            return (None,) * len(self.layers)
        self._require_causal()
        if not isinstance(state, tuple) or len(state) != len(self.layers):
            raise UsageError(
                f"this backbone continues a tuple of {len(self.layers)} layer states; "
                "pass the state that it returned"
            )
        return state

    def _require_causal(self) -> None:
        for number, block in enumerate(self.blocks):
            if not block.mixer.causal:
                raise UsageError(
                    f"layer {number} ({self.config.layer_names[number]}) needs the whole sequence "
                    "at once, so this model carries no state; pass whole sequences, or choose "
                    "causal mixers"
                )
