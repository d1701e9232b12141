"""Which parameters take weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from mambacore.errors import UsageError


def parameter_groups(
    model: nn.Module, weight_decay: float, *, decay_embeddings: bool = True
) -> list[dict[str, Any]]:
    """Two groups for an optimiser: with and without weight decay.

    Without: norms, biases and every other vector; A_log, D and delta's bias of the state space
    mixers; parameters marked ``_no_weight_decay``; embeddings (a tied head with them) unless
    `decay_embeddings`. Parameters that need no gradient are left out, shared ones appear once.

    Args:
        model: any module.
        weight_decay: of the first group, at least 0.
        decay_embeddings: decay them like other matrices.

    Returns:
        ``[{"params": [...], "weight_decay": weight_decay}, {"params": [...], "weight_decay": 0}]``,
        parameters in the model's order.

    >>> from mambacore import LanguageModel, ModelConfig
    >>> model = LanguageModel(ModelConfig(vocab_size=4, d_model=8, n_layer=1))
    >>> decayed, free = parameter_groups(model, 0.1)
    >>> len(decayed["params"]), len(free["params"])
    (6, 6)
    """
    if not weight_decay >= 0:
        raise UsageError(f"weight_decay must be at least 0, not {weight_decay}")
    free: set[int] = set()
    for module in model.modules():
        for name in getattr(module, "no_decay_parameters", ()):
            free.add(id(module.get_parameter(name)))
        if isinstance(module, nn.Embedding) and not decay_embeddings:
            free.add(id(module.weight))
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        exempt = (
            parameter.dim() < 2
            or id(parameter) in free
            or getattr(parameter, "_no_weight_decay", False)
        )
        groups[exempt].append(parameter)
    return [
        {"params": groups[0], "weight_decay": weight_decay},
        {"params": groups[1], "weight_decay": 0.0},
    ]
