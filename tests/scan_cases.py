"""Cases for the scan: inputs drawn from a seed, results with all gradients, one comparison."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from helpers import assert_as_exact, assert_close
from mambakernels import selective_scan

TENSORS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
_STATE_LIKE = ("A", "D", "delta_bias", "initial_state")


@dataclass(frozen=True)
class Case:
    """Sizes, dtype and options; `extras` says which optional tensors there are."""

    batch: int = 2
    length: int = 63
    channels: int = 20
    states: int = 5
    dtype: torch.dtype = torch.float32
    softplus: bool = True
    discretization: str = "euler"
    reverse: bool = False
    segments: bool = False
    extras: tuple[str, ...] = ("D", "z", "delta_bias", "initial_state")
    seed: int = 0

    @property
    def options(self) -> dict:
        return {
            "delta_softplus": self.softplus,
            "discretization": self.discretization,
            "reverse": self.reverse,
        }

    def inputs(self, device: str = "cpu") -> dict[str, Tensor]:
        """Values as a model has them: delta mostly below 1, A negative; drawn on the CPU."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        b, l, d, n = self.batch, self.length, self.channels, self.states
        delta = normal(b, l, d)
        drawn = {
            "u": normal(b, l, d),
            "delta": delta - 1.0 if self.softplus else delta.abs() * 0.3,
            "A": -torch.rand(d, n, generator=generator) * 4,
            "B": normal(b, l, n),
            "C": normal(b, l, n),
            "D": normal(d),
            "z": normal(b, l, d),
            # Without softplus delta must stay positive: states that grow overflow float16.
            "delta_bias": normal(d) * 0.1 if self.softplus else normal(d).abs() * 0.1,
            "initial_state": normal(b, d, n),
        }
        state_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        inputs = {
            name: t.to(device, state_dtype if name in _STATE_LIKE else self.dtype)
            for name, t in drawn.items()
            if name in self.extras or name in TENSORS[:5]
        }
        if self.segments:
            changes = torch.rand(b, l, generator=generator) < 0.15
            inputs["segment_ids"] = changes.cumsum(1).to(device)
        return inputs


def results(
    case: Case, inputs: dict[str, Tensor], backend: str | None, double: bool = False
) -> dict[str, Tensor]:
    """out, final_state and the gradient of each tensor, for fixed random weights of both."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    weight = torch.randn(case.batch, case.length, case.channels, generator=generator)
    state_weight = torch.randn(case.batch, case.channels, case.states, generator=generator)
    device = inputs["u"].device
    leaves = {
        name: t.double() if double and t.is_floating_point() else t.clone()
        for name, t in inputs.items()
    }
    tensors = {name: t.requires_grad_() for name, t in leaves.items() if t.is_floating_point()}
    out, final_state = selective_scan(
        **leaves, **case.options, return_final_state=True, backend=backend
    )
    weights = [
        weight.to(device, case.dtype).to(out.dtype),
        state_weight.to(device, final_state.dtype),
    ]
    gradients = torch.autograd.grad([out, final_state], list(tensors.values()), weights)
    named = {f"d{name}": g for name, g in zip(tensors, gradients, strict=True)}
    return {"out": out.detach(), "final_state": final_state.detach(), **named}


def check_parity(case: Case, backend: str, device: str = "cpu") -> None:
    """The backend is as close to float64 as the reference is, in every result."""
    inputs = case.inputs(device)
    got = results(case, inputs, backend)
    exact = results(case, inputs, "reference", double=True)
    if case.dtype == torch.float64:  # float64 itself is only exact to rounding
        for name, value in got.items():
            assert_close(value, exact[name], 1e-13, f"{name} of {case}")
        return
    rounded = results(case, inputs, "reference")
    for name, value in got.items():
        assert value.dtype == rounded[name].dtype, name
        assert_as_exact(value, exact[name], rounded[name], f"{name} of {case}")
