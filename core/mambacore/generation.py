"""Sampling tokens one after the other, each step from the carried state."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mambacore.errors import UsageError
from mambacore.language_model import LanguageModel


class Generated(NamedTuple):
    """What `generate` made.

    tokens: (batch, max_new_tokens) int64, the new ones only.
    state: after everything but the last new token, so that
        ``generate(model, tokens[:, -1:], n, state=state)`` goes on.
    """

    tokens: Tensor
    state: tuple[Any, ...]


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    state: tuple[Any, ...] | None = None,
) -> Generated:
    """Continue sequences of tokens; a step costs the same at any length.

    Args:
        model: a language model of causal mixers; its mode (train or eval) is left as it is.
        tokens: (batch, length >= 1) prompt, or what follows `state`.
        max_new_tokens: how many to make, at least 1.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: sample among the k most likely tokens.
        top_p: sample among the most likely tokens whose probabilities first reach p, in (0, 1].
        seed: of the sampling; the same seed gives the same tokens on the same device. None draws
            from torch's global generator.
        state: carried from before `tokens`.

    Raises:
        UsageError: an argument out of range, or a model that needs the whole sequence.

    >>> from mambacore import ModelConfig
    >>> model = LanguageModel(ModelConfig(vocab_size=16, d_model=8))
    >>> made = generate(model, torch.tensor([[1, 2, 3]]), 5, seed=0)
    >>> made.tokens.shape
    torch.Size([1, 5])
    """
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    _check_sampling(temperature, top_k, top_p)
    if not model.causal:
        raise UsageError(
            "this model needs the whole sequence (it has a bidirectional mixer), so it cannot "
            "generate; use a model of causal mixers"
        )
    generator = None
    if seed is not None:
        generator = torch.Generator(tokens.device).manual_seed(seed)
    made = []
    for _ in range(max_new_tokens):
        h, state = model.hidden(tokens, state)
        # The head reads the last position alone: a long prompt never makes a table of logits.
        logits = model.logits(h[:, -1]).float()
        tokens = sample(
            logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
        )[:, None]
        made.append(tokens)
    assert state is not None
    return Generated(torch.cat(made, dim=1), state)


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One token a row, (batch,) int64, from logits (batch, vocabulary).

    The arguments are those of `generate`; top_k is applied before top_p. The most likely token
    always stays.

    >>> sample(torch.tensor([[0.0, 3.0, 1.0]]), top_k=1)
    tensor([1])
    """
    _check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(dim=-1)
        # A token stays while those before it have not reached p, so the first always does.
        enough = probability.cumsum(dim=-1) - probability >= top_p
        logits = logits.masked_fill(enough.scatter(-1, order, enough), -torch.inf)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"temperature must be at least 0 and finite, not {temperature}")
    if top_k is not None and top_k < 1:
        raise UsageError(f"top_k must be at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"top_p must be above 0 and at most 1, not {top_p}")
