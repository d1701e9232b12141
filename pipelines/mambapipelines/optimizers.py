"""The optimiser that every training uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mambacore.optim import parameter_groups

from .options import OptimizerOptions


def adamw(
    model: nn.Module, options: OptimizerOptions, *, scaled: bool = False
) -> torch.optim.AdamW:
    """AdamW without weight decay on norms, biases, A_log, D and the delta bias.

    On a GPU it is fused: one kernel for all parameters, which also skips a bad step without the
    host's knowing (`guards.StepGuard`).

    Args:
        model: where the parameters are.
        options: learning rate, decays.
        scaled: a gradient scaler stands before it (16-mixed): not fused, because a fused one
            unscales on its own and gradients could not be clipped before.
    """
    groups = parameter_groups(model, options.weight_decay)
    settings: dict[str, Any] = {"lr": options.lr, "betas": (options.beta1, options.beta2)}
    on_gpu = all(p.is_cuda for group in groups for p in group["params"])
    if on_gpu and not scaled:
        settings["fused"] = True
    return torch.optim.AdamW(groups, **settings)
