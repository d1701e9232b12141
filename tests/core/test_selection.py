"""The selective recurrence as the exponential moving average that it is."""

from __future__ import annotations

import torch

from helpers import assert_close
from mambakernels import selective_scan


def _average(x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """zoh with one state, A = -1, B = C = 1."""
    ones = torch.ones(*x.shape[:2], 1)
    A = -torch.ones(x.shape[-1], 1)
    out = selective_scan(x, delta, A, ones, ones, discretization="zoh")
    assert isinstance(out, torch.Tensor)
    return out


def test_it_is_a_moving_average_with_its_own_step() -> None:
    """h = a h + (1 - a) x with a = exp(-delta), a chosen anew at every position."""
    x, delta = torch.randn(2, 50, 3), torch.rand(2, 50, 3) * 3
    a, h, expected = torch.exp(-delta), torch.zeros(2, 3), []
    for t in range(50):
        h = a[:, t] * h + (1 - a[:, t]) * x[:, t]
        expected.append(h)
    assert_close(_average(x, delta), torch.stack(expected, dim=1), 1e-6)


def test_a_large_step_resets() -> None:
    """delta large: the past is gone and the state is the input."""
    x, delta = torch.randn(1, 30, 4), torch.rand(1, 30, 4)
    delta[:, 20] = 100.0
    out = _average(x, delta)
    assert_close(out[:, 20], x[:, 20], 1e-6)
    other = x.clone()
    other[:, :20] += 10
    assert_close(_average(other, delta)[:, 20:], out[:, 20:], 1e-6)


def test_a_step_of_zero_filters_out() -> None:
    """delta to 0: the input is ignored and the state kept."""
    x, delta = torch.randn(1, 30, 4), torch.rand(1, 30, 4)
    delta[:, 10:20] = 1e-9
    out = _average(x, delta)
    assert_close(out[:, 19], out[:, 9], 1e-6)
    other = x.clone()
    other[:, 10:20] += 10
    assert_close(_average(other, delta), out, 1e-6)
