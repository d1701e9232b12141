"""Parameters that stay float32 when a model is cast to bfloat16 or float16.

A, D and the delta bias enter an exponential and are applied once per step of a recurrence over
millions of steps: rounded to eight bits, the model is another one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_HALF = (torch.bfloat16, torch.float16)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for float32 and below, float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


class KeepsFloat32(nn.Module):
    """A module some of whose parameters are never rounded to half precision.

    Class attributes, to be set by the subclass:
        float32_parameters: dotted names that survive ``.to(torch.bfloat16)``, ``.half()`` and
            the like as float32. Casts to float64 and moves between devices apply to them too.
        no_decay_parameters: dotted names that take no weight decay (`parameter_groups`).
    """

    float32_parameters: tuple[str, ...] = ()
    no_decay_parameters: tuple[str, ...] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # `.data`, because the cast replaces the contents of these very objects.
        before = {name: self.get_parameter(name) for name in self.float32_parameters}
        values = {name: parameter.data for name, parameter in before.items()}
        gradients = {
            name: None if parameter.grad is None else parameter.grad.data
            for name, parameter in before.items()
        }
        super()._apply(fn, recurse)  # pyright: ignore[reportCallIssue]
        for name in self.float32_parameters:
            parameter = self.get_parameter(name)
            if parameter.dtype not in _HALF:
                continue
            # From the value before the cast, so that nothing was rounded on the way.
            gradient = gradients[name]
            parameter.grad = None
            parameter.data = values[name].to(parameter.device, torch.float32)
            if gradient is not None:
                parameter.grad = gradient.to(parameter.device, torch.float32)
        return self
