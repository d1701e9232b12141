"""How the state space parameters and the residual projections begin."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mambacore.errors import UsageError

REAL_A = ("s4d-real", "s4d-lin")


def real_a_log(kind: str, channels: int, d_state: int) -> Tensor:
    """log(-A) of a real diagonal A, (channels, d_state) float32.

    "s4d-real": A_n = -(n + 1), Mamba's default. "s4d-lin": A_n = -1/2, the real part of S4D-Lin
    (Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space Models";
    compared in the Mamba paper, arXiv 2312.00752, section 4.6).

    >>> real_a_log("s4d-real", 1, 3).exp()
    tensor([[1., 2., 3.]])
    """
    if kind == "s4d-real":
        row = torch.arange(1, d_state + 1, dtype=torch.float32)
    elif kind == "s4d-lin":
        row = torch.full((d_state,), 0.5)
    else:
        raise UsageError(f"a_init {kind!r} is not one of {', '.join(REAL_A)}")
    return row.log().repeat(channels, 1)


def complex_a(kind: str, channels: int, modes: int) -> tuple[Tensor, Tensor]:
    """(-Re A, Im A) of a complex diagonal A, both (channels, modes) float32.

    "s4d-lin": A_n = -1/2 + i pi n (eq. 9 of the S4D paper, arXiv 2206.11893). "s4d-real":
    A_n = -(n + 1), without oscillation.
    """
    n = torch.arange(modes, dtype=torch.float32)
    if kind == "s4d-lin":
        real, imaginary = torch.full((modes,), 0.5), math.pi * n
    elif kind == "s4d-real":
        real, imaginary = n + 1, torch.zeros(modes)
    else:
        raise UsageError(f"a_init {kind!r} is not one of {', '.join(REAL_A)}")
    return real.repeat(channels, 1), imaginary.repeat(channels, 1)


def log_uniform(size: int, low: float, high: float) -> Tensor:
    """(size,) float32 samples whose logarithm is uniform between log(low) and log(high)."""
    if not 0 < low <= high:
        raise UsageError(f"dt_min and dt_max must satisfy 0 < dt_min <= dt_max: {low}, {high}")
    return torch.exp(torch.rand(size) * (math.log(high) - math.log(low)) + math.log(low))


def inverse_softplus(value: Tensor) -> Tensor:
    """x with softplus(x) = value, exact for small values: value + log(1 - exp(-value))."""
    return value + torch.log(-torch.expm1(-value))


def initialise_linear(module: nn.Module) -> None:
    """Zero the biases of the linear maps below `module`, save those kept in float32.

    The weights keep torch's Kaiming-uniform start. A dt_proj's bias is listed among its mixer's
    float32 parameters and keeps the value that sets the range of delta.
    """
    kept = {
        id(parent.get_parameter(name))
        for parent in module.modules()
        for name in getattr(parent, "float32_parameters", ())
    }
    for child in module.modules():
        if isinstance(child, nn.Linear) and child.bias is not None and id(child.bias) not in kept:
            nn.init.zeros_(child.bias)
