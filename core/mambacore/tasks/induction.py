"""Induction heads: what followed the special token when it was seen before?"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mambacore.errors import UsageError
from mambacore.tasks.questions import Questions, token_dtype


@dataclass(frozen=True)
class InductionHeads:
    """Random tokens; the special one stands once among them and again at the end.

    ``a b c S d e f ... S`` asks for ``d``: the token after the first S. The special token is
    ``vocab_size - 1``; all others are drawn uniformly and the first special one stands anywhere
    from position 0 to ``length - 3``, uniformly. Dao et al. 2022 (H3, arXiv 2212.14052), table 1;
    Mamba (arXiv 2312.00752), section 4.1.2, which trains at length 256 and tests to 2^20.

    Args:
        length: positions of a sequence, the last special token included; at least 3.
        vocab_size: token ids, the special one included; at least 3.

    Raises:
        UsageError: a number that is too small.

    >>> task = InductionHeads(length=8)
    >>> tokens, answers = task.draw(2, generator=torch.Generator().manual_seed(0))
    >>> tokens.shape, answers.shape, tokens[:, -1].tolist()
    (torch.Size([2, 8]), torch.Size([2, 1]), [15, 15])
    """

    length: int = 256
    vocab_size: int = 16

    def __post_init__(self) -> None:
        if self.length < 3 or self.vocab_size < 3:
            raise UsageError(
                "length and vocab_size of the induction task must be at least 3, not "
                f"{self.length} and {self.vocab_size}"
            )

    @property
    def chance(self) -> float:
        """Accuracy of guessing: the answer is never the special token."""
        return 1 / (self.vocab_size - 1)

    def draw(
        self,
        rows: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Questions:
        """See `Task`; tokens (rows, length), answers (rows, 1)."""
        special = self.vocab_size - 1
        tokens = torch.randint(
            0,
            special,
            (rows, self.length),
            generator=generator,
            device=device,
            dtype=token_dtype(self.vocab_size),
        )
        place = torch.randint(0, self.length - 2, (rows, 1), generator=generator, device=device)
        tokens.scatter_(1, place, special)
        tokens[:, -1] = special
        return Questions(tokens, tokens.gather(1, place + 1).long())
