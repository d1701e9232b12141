"""The decoding step as a custom operator, for torch.compile; without gradient.

Where a gradient is needed the step runs as plain PyTorch (`reference`), which has one; so the fast
kernels exist for inference only, and outside torch.compile they are called without a dispatcher.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch
from torch import Tensor


@cache
def load(name: str) -> ModuleType:
    """The module of this backend."""
    return importlib.import_module(f"mambakernels.step.{name}")


@torch.library.custom_op("mambakernels::selective_state_step", mutates_args=())
def selective_state_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    zoh: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Output and next state by the backend of this name."""
    out, next_state = u.new_empty(u.shape), state.new_empty(state.shape)
    load(backend).forward(
        state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, zoh, out, next_state
    )
    return out, next_state


@selective_state_step.register_fake
def _(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, zoh, backend):
    return u.new_empty(u.shape), state.new_empty(state.shape)
