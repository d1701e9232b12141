"""What the synthetic tasks have in common: sequences whose last positions ask for tokens."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Questions(NamedTuple):
    """A batch of a task.

    tokens: (rows, length) integers, uint8 for vocabularies of at most 256. answers: (rows, n)
    int64; the logits of the last n positions of `tokens` should pick them, in this order.
    """

    tokens: Tensor
    answers: Tensor


class Task(Protocol):
    """An endless source of fresh questions."""

    @property
    def vocab_size(self) -> int:
        """Token ids, special ones included."""
        ...

    @property
    def chance(self) -> float:
        """Accuracy of guessing among the tokens that can be the answer."""
        ...

    def draw(
        self,
        rows: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Questions:
        """Fresh questions, made on the device; the same generator state gives the same ones."""
        ...


def token_dtype(vocab_size: int) -> torch.dtype:
    """The smallest dtype that tokens are kept in."""
    return torch.uint8 if vocab_size <= 256 else torch.int64
