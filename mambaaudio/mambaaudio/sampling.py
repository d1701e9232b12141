"""Drawing symbols: settings, one stream of uniform numbers a row, the inverse of a distribution.

Random numbers are drawn on the host, from a generator of each row's own, and turned into symbols
by the inverse of the cumulated distribution. So a row's symbols depend on its seed alone, not on
the batch that it is in, and every engine (torch on any device, the compiled loop, a CUDA graph)
draws the same ones, but for rounding of the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambacore.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How symbols are chosen from scores.

    temperature: divides the scores; 1 is the model's own distribution, 0 takes the likeliest.
    top_k: choose among the k likeliest symbols (and those equal to the last of them).
    top_p: choose among the likeliest symbols whose probabilities first reach p, in (0, 1]; after
        top_k, and at the temperature.
    guidance: g takes scores g s + (1 - g) s', where s' are those of the same model that was not
        told the condition (classifier-free guidance, arXiv:2207.12598; for models of the next
        symbol arXiv:2306.17806). 1 is the model's own distribution, more follows the condition
        more closely, and costs two steps a symbol.
    spread_penalty, jump_limit: of what is left to choose from, a value d steps of the code from
        the mean has its probability divided by 1 + spread_penalty d^2 + (d / jump_limit)^4, the
        end event none; 0 divides by nothing. What the training options of these names make of a
        model, after its training: a minute of sound swells and clicks less.
    hold_level: a makes both of a row f times as large, f = (its level / its prompt's level) ** a,
        from 1/16 to 16: what became loud is drawn narrower, what became quiet wider, for minutes;
        0 to 4, 0 changes nothing. See `mambaaudio.level`.

    >>> Sampling(temperature=-1)
    Traceback (most recent call last):
    ...
    mambacore.errors.UsageError: temperature must be at least 0 and finite, not -1
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float = 1.0
    spread_penalty: float = 0.0
    jump_limit: float = 0.0
    hold_level: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature must be at least 0 and finite, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.guidance < float("inf"):
            raise UsageError(f"guidance must be at least 0 and finite, not {self.guidance}")

        if not 0 <= self.spread_penalty <= 1:
            raise UsageError(f"spread_penalty must be 0 to 1, not {self.spread_penalty}")
        if self.jump_limit != 0 and not 1 <= self.jump_limit < float("inf"):
            raise UsageError(
                f"jump_limit must be at least 1 step of the code, or 0 for none, not "
                f"{self.jump_limit}"
            )
        if not 0 <= self.hold_level <= 4:
            raise UsageError(f"hold_level must be 0 to 4, not {self.hold_level}")
        if self.hold_level and not any(self.costs):
            raise UsageError(
                "hold_level makes spread_penalty and jump_limit follow the level; give one of "
                "them, or leave hold_level at 0"
            )

    @property
    def costs(self) -> tuple[float, float]:
        """Of the second and of the fourth power of a distance from the mean."""
        return self.spread_penalty, self.jump_limit**-4 if self.jump_limit else 0.0

    @property
    def streams(self) -> int:
        """Rows that the model steps for each that is drawn: with guidance an untold one, too."""
        return 1 if self.guidance == 1 else 2


class Uniforms:
    """One endless stream of numbers in [0, 1) for every seed.

    >>> two, one = Uniforms([3, 4]).draw(5), Uniforms([4])
    >>> bool((two[1, 2:] == one.draw(2 + 3)[0, 2:]).all())
    True
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        if any(seed < 0 for seed in seeds):
            raise UsageError(f"seeds must be 0 or more, not {min(seeds)}")
        self._streams = [np.random.Generator(np.random.Philox(seed)) for seed in seeds]

    def draw(self, count: int) -> NDArray[np.float64]:
        """The next `count` numbers of every row, (rows, count)."""
        return np.stack([stream.random(count) for stream in self._streams])


def pick(
    logits: Tensor,
    uniform: Tensor,
    sampling: Sampling,
    allowed: int | None = None,
    levels: int | None = None,
    factors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One symbol a row, and its log-probability under the model; no host synchronisation.

    Args:
        logits: (B, V) scores; with guidance (2 B, V), those of the untold rows last.
        uniform: (B,) float64 in [0, 1).
        sampling: how to choose.
        allowed: only symbols below it may be chosen; all by default.
        levels: symbols below it are values of the code, which have distances; all by default.
        factors: (B,) float64, of each row's costs; 1 by default.

    Returns:
        symbols (B,) int64, and their natural log-probabilities (B,) float32, those of the told
        model's whole distribution at temperature 1 whatever the sampling.
    """
    scores = logits[:, :allowed].double()
    if sampling.streams == 2:
        logits, _ = logits.chunk(2)
        told, untold = scores.chunk(2)
        scores = sampling.guidance * told + (1 - sampling.guidance) * untold
    logs = logits.float().log_softmax(-1)
    symbols = _choose(scores, uniform, sampling, levels, factors)
    return symbols, logs.gather(1, symbols[:, None])[:, 0]


def _choose(
    scores: Tensor,
    uniform: Tensor,
    sampling: Sampling,
    levels: int | None,
    factors: Tensor | None,
) -> Tensor:
    if sampling.temperature == 0:
        return scores.argmax(-1)
    count = scores.shape[-1]
    highest = scores.amax(-1, keepdim=True)
    mass = ((scores - highest) / sampling.temperature).exp()
    if sampling.top_k is not None and sampling.top_k < count:
        least = scores.topk(sampling.top_k).values[:, -1:]
        mass = torch.where(scores >= least, mass, 0.0)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered = mass.sort(descending=True).values
        before = ordered.cumsum(-1) - ordered
        kept = before < sampling.top_p * ordered.sum(-1, keepdim=True)
        least = torch.where(kept, ordered, torch.inf).amin(-1, keepdim=True)
        mass = torch.where(mass >= least, mass, 0.0)
    if any(sampling.costs):
        levels = count if levels is None else levels
        costs = [cost if factors is None else cost * factors[:, None] for cost in sampling.costs]
        mass = torch.cat([_narrower(mass[:, :levels], *costs), mass[:, levels:]], 1)
    summed = mass.cumsum(-1)
    aim = uniform[:, None] * summed[:, -1:]
    return (summed <= aim).sum(-1).clamp(max=count - 1)


def _narrower(mass: Tensor, square: float | Tensor, fourth: float | Tensor) -> Tensor:
    """Divided by the costs of the distances from the mean; the sum stays."""
    values = torch.arange(mass.shape[-1], dtype=mass.dtype, device=mass.device)
    # All of it may lie on the end event.
    total = mass.sum(-1, keepdim=True).clamp(min=1e-300)
    away = (values - (mass * values).sum(-1, keepdim=True) / total).square()
    less = mass / (1 + square * away + fourth * away.square())
    return less * (total / less.sum(-1, keepdim=True).clamp(min=1e-300))
