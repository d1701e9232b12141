"""What several test folders use: the one table of tolerances, NaN-filled memory, small models."""

from __future__ import annotations

import torch
from torch import Tensor

# STYLE: the error against float64 is at most `factor` times the error of the reference with
# float32 state on the same rounded inputs, plus `eps` machine epsilons of the output's dtype,
# relative to the largest value; on the maximum and on the root mean square.
FACTOR = 2.0
EPS = 4.0


def _errors(got: Tensor, exact: Tensor) -> tuple[float, float]:
    difference = got.double() - exact.double()
    return difference.abs().max().item(), difference.pow(2).mean().sqrt().item()


def assert_as_exact(
    got: Tensor, exact: Tensor, reference: Tensor, name: str = "", dtype: torch.dtype | None = None
) -> None:
    """`got` is as close to `exact` (float64) as the float32-state `reference` is, to rounding.

    dtype: the precision that the rounding allowance is taken from; `got`'s by default.
    """
    assert got.shape == exact.shape, f"{name}: shape {tuple(got.shape)} is not {tuple(exact.shape)}"
    if got.numel() == 0:
        return
    assert torch.isfinite(got).all(), f"{name}: {(~torch.isfinite(got)).sum()} non-finite values"
    scale = exact.abs().max().item()
    allowance = EPS * torch.finfo(dtype or got.dtype).eps * scale
    for kind, error, base in zip(
        ("maximum", "rms"), _errors(got, exact), _errors(reference, exact), strict=True
    ):
        limit = FACTOR * base + allowance
        assert error <= limit, f"{name}: {kind} error {error:.3e} exceeds {limit:.3e}"


def assert_close(got: Tensor, expected: Tensor, relative: float, name: str = "") -> None:
    """Largest difference at most `relative` times the largest expected value; never NaN."""
    assert got.shape == expected.shape, f"{name}: {tuple(got.shape)} is not {tuple(expected.shape)}"
    if got.numel() == 0:
        return
    difference = (got.double() - expected.double()).abs().max().item()
    limit = relative * max(expected.double().abs().max().item(), 1e-30)
    assert difference <= limit, f"{name}: difference {difference:.3e} exceeds {limit:.3e}"
