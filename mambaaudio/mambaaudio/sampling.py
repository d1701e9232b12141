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
    core_temperature: of what is left to choose from, values of the code within two standard
        deviations of the mean have their probabilities raised to 1 / core_temperature, and
        scaled so that they together keep theirs: steady sound is drawn with less noise, which a
        model would hear and let ring, and what is rare (the attack of a note) as often as before.
        Above 0, at most 1, which changes nothing.

    >>> Sampling(temperature=-1)
    Traceback (most recent call last):
    ...
    mambacore.errors.UsageError: temperature must be at least 0 and finite, not -1
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float = 1.0
    core_temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature must be at least 0 and finite, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.guidance < float("inf"):
            raise UsageError(f"guidance must be at least 0 and finite, not {self.guidance}")
        if not 0 < self.core_temperature <= 1:
            raise UsageError(
                f"core_temperature must be above 0 and at most 1, not {self.core_temperature}"
            )

    @property
    def streams(self) -> int:
        """Rows that the model steps for each that is drawn: with guidance an untold one, too."""
        return 1 if self.guidance == 1 else 2

    def stepped(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the rows that the model steps for these (all that are drawn, in any order)."""
        return np.concatenate([rows + stream * len(rows) for stream in range(self.streams)])


class Uniforms:
    """One endless stream of numbers in [0, 1) for every seed, or one for each of its candidates.

    Streams of one seed are neighbours; its first is the same however many there are.

    >>> two, one = Uniforms([3, 4]).draw(5), Uniforms([4])
    >>> bool((two[1, 2:] == one.draw(2 + 3)[0, 2:]).all())
    True
    """

    def __init__(self, seeds: Sequence[int], candidates: int = 1) -> None:
        if any(seed < 0 for seed in seeds):
            raise UsageError(f"seeds must be 0 or more, not {min(seeds)}")
        self._streams = [
            np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))
            for seed in seeds
            for key in ((), *((number,) for number in range(1, candidates)))
        ]

    def draw(self, count: int) -> NDArray[np.float64]:
        """The next `count` numbers of every row, (rows, count)."""
        return np.stack([stream.random(count) for stream in self._streams])


def pick(
    logits: Tensor,
    uniform: Tensor,
    sampling: Sampling,
    allowed: int | None = None,
    levels: int | None = None,
) -> tuple[Tensor, Tensor]:
    """One symbol a row, and its log-probability under the model; no host synchronisation.

    Args:
        logits: (B, V) scores; with guidance (2 B, V), those of the untold rows last.
        uniform: (B,) float64 in [0, 1).
        sampling: how to choose.
        allowed: only symbols below it may be chosen; all by default.
        levels: symbols below it are values of the code, which have distances; all by default.

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
    symbols = _choose(scores, uniform, sampling, levels)
    return symbols, logs.gather(1, symbols[:, None])[:, 0]


def _choose(
    scores: Tensor,
    uniform: Tensor,
    sampling: Sampling,
    levels: int | None,
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
    if sampling.core_temperature < 1:
        levels = count if levels is None else levels
        steadier = _steadier(mass[:, :levels], 1 / sampling.core_temperature)
        mass = torch.cat([steadier, mass[:, levels:]], 1)
    summed = mass.cumsum(-1)
    aim = uniform[:, None] * summed[:, -1:]
    return (summed <= aim).sum(-1).clamp(max=count - 1)


def _steadier(mass: Tensor, exponent: float) -> Tensor:
    """Raised to the exponent within two standard deviations of the mean; all sums stay."""
    values = torch.arange(mass.shape[-1], dtype=mass.dtype, device=mass.device)
    # All of it may lie on the end event.
    total = mass.sum(-1, keepdim=True).clamp(min=1e-300)
    away = (values - (mass * values).sum(-1, keepdim=True) / total).square()
    variance = (mass * away).sum(-1, keepdim=True) / total
    core = torch.where(away <= (4 * variance).clamp(min=0.25), mass, 0.0)
    raised = (core / core.amax(-1, keepdim=True).clamp(min=1e-300)) ** exponent
    scale = core.sum(-1, keepdim=True) / raised.sum(-1, keepdim=True).clamp(min=1e-300)
    return torch.where(core > 0, raised * scale, mass)
