"""``causal_conv1d`` as custom operators: backend dispatch below autograd, fake tensors, gradient.

Saved for the backward: the inputs alone; it computes the pre-activation again.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from mambakernels._autograd import differentiable
from mambakernels._checks import needs_gradient, untraced


@cache
def _backend(name: str) -> ModuleType:
    return importlib.import_module(f"mambakernels.conv.{name}")


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    segment_ids: Tensor | None,
    silu: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _backend(backend).forward(x, weight, bias, initial_state, segment_ids, silu)


def _backward(
    dout: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    segment_ids: Tensor | None,
    silu: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and initial_state, each shaped and typed as what it is for.

    Those of an absent bias or initial state are empty.
    """
    dx, dweight, dbias, dinitial = _backend(backend).backward(
        dout, dfinal, x, weight, bias, initial_state, segment_ids, silu
    )
    return (
        dx,
        dweight.to(weight.dtype),
        x.new_empty(0) if bias is None else dbias.to(bias.dtype),
        x.new_empty(0) if initial_state is None else dinitial.to(x.dtype),
    )


# ---- registered operators: torch.compile, fake tensors, dispatch modes

_forward_op = torch.library.custom_op("mambakernels::causal_conv1d", _forward, mutates_args=())
_backward_op = torch.library.custom_op(
    "mambakernels::causal_conv1d_backward", _backward, mutates_args=()
)


@_forward_op.register_fake
def _(x, weight, bias, initial_state, segment_ids, silu, backend):
    batch, length, channels = x.shape
    out = x.new_empty(batch, length, channels)
    return out, x.new_empty(batch, weight.shape[1] - 1, channels)


@_backward_op.register_fake
def _(dout, dfinal, x, weight, bias, initial_state, segment_ids, silu, backend):
    batch, length, channels = x.shape
    return (
        x.new_empty(batch, length, channels),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        x.new_empty(0) if bias is None else torch.empty_like(bias),
        x.new_empty(0) if initial_state is None else x.new_empty(initial_state.shape),
    )


def _save(ctx, inputs, output):
    *tensors, ctx.silu, ctx.backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _gradients(ctx, run, dout, dfinal):
    x, weight, bias, initial_state, segment_ids = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(x, memory_format=torch.contiguous_format)
    dx, dweight, dbias, dinitial = run(
        dout, dfinal, x, weight, bias, initial_state, segment_ids, ctx.silu, ctx.backend
    )
    dbias = None if bias is None else dbias
    dinitial = None if initial_state is None else dinitial
    return dx, dweight, dbias, dinitial, None, None, None


_short_way = differentiable(
    _forward_op, _backward_op, run_forward=_forward, run_backward=_backward, save=_save,
    gradients=_gradients, operation="causal_conv1d",
)  # fmt: skip


def causal_conv1d(*inputs) -> tuple[Tensor, Tensor]:
    """(out, final state) for the arguments of `_forward`, differentiable once."""
    if not untraced(inputs[0]):
        return _forward_op(*inputs)
    if needs_gradient(*inputs[:4]):
        return _short_way(*inputs)
    with torch.no_grad():
        return _forward(*inputs)
