"""Selective copying: recall scattered tokens in their order, whatever stands between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mambacore.errors import UsageError
from mambacore.tasks.questions import Questions, token_dtype


@dataclass(frozen=True)
class SelectiveCopying:
    """Data tokens at random places among noise; markers at the end ask for them in order.

    ``. . b . . . d . b . | | |`` asks for ``b d b``. Token 0 is noise, ``vocab_size - 1`` the
    marker, the rest are data, drawn uniformly; the places are a uniform choice without repetition.
    As in S4's code for the task (Arjovsky et al. 2016, arXiv 1511.06464, with random spacing):
    `length` noise tokens and `recall` data tokens are mixed, then `recall` markers follow. Mamba
    (arXiv 2312.00752), section 4.1.1: length 4,096, vocabulary 16, 16 to recall.

    Args:
        length: noise tokens; a sequence has length + 2 recall positions.
        vocab_size: token ids, noise and marker included; at least 4.
        recall: tokens to remember.

    Raises:
        UsageError: a number that is too small.

    >>> task = SelectiveCopying(length=6, recall=3)
    >>> tokens, answers = task.draw(2, generator=torch.Generator().manual_seed(0))
    >>> tokens.shape, (tokens[:, :9] > 0).sum(1).tolist(), tokens[0, 9:].tolist()
    (torch.Size([2, 12]), [3, 3], [15, 15, 15])
    """

    length: int = 4096
    vocab_size: int = 16
    recall: int = 16

    def __post_init__(self) -> None:
        if self.length < 0 or self.recall < 1 or self.vocab_size < 4:
            raise UsageError(
                "the copying task needs length >= 0, recall >= 1 and vocab_size >= 4, not "
                f"{self.length}, {self.recall} and {self.vocab_size}"
            )

    @property
    def chance(self) -> float:
        """Accuracy of guessing among the data tokens."""
        return 1 / (self.vocab_size - 2)

    def draw(
        self,
        rows: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Questions:
        """See `Task`; tokens (rows, length + 2 recall), answers (rows, recall)."""
        slots, marker = self.length + self.recall, self.vocab_size - 1
        data = torch.randint(1, marker, (rows, self.recall), generator=generator, device=device)
        # The places of the largest of independent draws are a uniform choice.
        drawn = torch.rand(rows, slots, generator=generator, device=device)
        places = drawn.topk(self.recall, dim=1).indices.sort(dim=1).values
        tokens = torch.full(
            (rows, slots + self.recall),
            marker,
            device=device,
            dtype=token_dtype(self.vocab_size),
        )
        tokens[:, :slots] = 0
        tokens.scatter_(1, places, data.to(tokens.dtype))
        return Questions(tokens, data)
