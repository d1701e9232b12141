"""Tokens in, scores of the next token out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambacore.backbone import Backbone
from mambacore.config import ModelConfig
from mambacore.errors import UsageError


class LanguageModel(nn.Module):
    """Embedding, backbone and head: ``forward(tokens, state=None) -> (logits, state)``.

    Args:
        config: with `vocab_size`. `tie_embeddings` makes the head use the embedding's weight,
            `pad_vocab_multiple` pads the weights' rows; logits are (batch, length, vocab_size).

    >>> model = LanguageModel(ModelConfig(vocab_size=16, d_model=8))
    >>> logits, state = model(torch.tensor([[1, 2, 3]]))
    >>> logits, state = model(torch.tensor([[4]]), state)
    >>> logits.shape
    torch.Size([1, 1, 16])
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        rows = config.padded_vocab_size
        self.vocab_size = config.vocab_size or rows
        self.embedding = nn.Embedding(rows, config.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.backbone = Backbone(config)
        self.lm_head: nn.Linear | None = None
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.d_model, rows, bias=False)

    @property
    def causal(self) -> bool:
        """A state can be carried, and tokens generated."""
        return self.backbone.causal

    def forward(
        self,
        tokens: Tensor,
        state: tuple[Any, ...] | None = None,
        *,
        segment_ids: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Any, ...] | None]:
        """Logits of the token after each position.

        Args:
            tokens: (batch, length) integers of any dtype, each below vocab_size.
            state: what an earlier call returned, to continue its sequence.
            segment_ids: (batch, length) integers; the state is reset where they change.

        Raises:
            UsageError: tokens of a wrong shape, dtype or (on the CPU) range.
        """
        h, state = self.hidden(tokens, state, segment_ids=segment_ids)
        return self.logits(h), state

    def hidden(
        self,
        tokens: Tensor,
        state: tuple[Any, ...] | None = None,
        *,
        segment_ids: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Any, ...] | None]:
        """What the head reads, (batch, length, d_model), and the state."""
        if tokens.dim() != 2 or tokens.is_floating_point() or tokens.shape[1] < 1:
            raise UsageError(
                "tokens must be (batch, length >= 1) integers, not "
                f"{tuple(tokens.shape)} of {tokens.dtype}"
            )
        # On a GPU the check would wait for the device; there the embedding itself fails.
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = (int(value) for value in tokens.aminmax())
            if low < 0 or high >= self.vocab_size:
                raise UsageError(
                    f"token {low if low < 0 else high} is not in the vocabulary, "
                    f"0 to {self.vocab_size - 1}"
                )
        if tokens.dtype not in (torch.int32, torch.int64):
            tokens = tokens.long()
        return self.backbone(self.embedding(tokens), state, segment_ids=segment_ids)

    def logits(self, h: Tensor) -> Tensor:
        """Scores (..., vocab_size) of hidden vectors (..., d_model)."""
        return F.linear(h, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """The head's rows, (vocab_size, d_model): what `chunked_cross_entropy` needs of it."""
        head = self.embedding if self.lm_head is None else self.lm_head
        return head.weight[: self.vocab_size]

    def initial_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[Any, ...]:
        """The state before the first token; the same as passing None."""
        return self.backbone.initial_state(batch, device, dtype)
