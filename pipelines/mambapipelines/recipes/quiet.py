"""Pressure on the selection of Mamba layers towards leaving the state alone.

A state that shall be kept for L steps needs deltas below 1 / L at all of them; a model trained on
short sequences has no reason to go that far. The penalty is linear in delta before its softplus,
which for small deltas is the logarithm of delta: it pulls at every order of magnitude alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambacore.mixers.mamba import MambaMixer
from mambakernels import causal_conv1d

FLOOR = -25.0
"""Deltas below exp(FLOOR) = 1.4e-11 are small enough."""


def before_softplus(mixer: MambaMixer, x: Tensor) -> Tensor:
    """(B, L, E) delta of the mixer for its input x (B, L, d_model), before the softplus."""
    u, _ = mixer.in_proj(x).chunk(2, dim=-1)
    u = causal_conv1d(u, mixer.conv1d.weight[:, 0], mixer.conv1d.bias, activation="silu")
    low = F.linear(u, mixer.x_proj.weight[: mixer.dt_rank])
    return mixer.dt_proj(low)


@contextmanager
def watched(model: nn.Module) -> Iterator[list[tuple[MambaMixer, Tensor]]]:
    """The inputs of the model's Mamba mixers, as the calls inside come."""
    seen: list[tuple[MambaMixer, Tensor]] = []

    def note(mixer: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(mixer, MambaMixer)
        seen.append((mixer, given[0]))

    mixers = [module for module in model.modules() if isinstance(module, MambaMixer)]
    hooks = [mixer.register_forward_pre_hook(note) for mixer in mixers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def penalty(seen: list[tuple[MambaMixer, Tensor]]) -> Tensor | float:
    """Mean over layers, positions and channels of how far log delta lies above `FLOOR`."""
    if not seen:
        return 0.0
    parts = [F.relu(before_softplus(mixer, x) - FLOOR).mean() for mixer, x in seen]
    return torch.stack(parts).mean()
