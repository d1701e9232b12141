"""``rms_norm`` as custom operators: backend dispatch below autograd, fake tensors, gradient.

Saved for the backward: the residual stream that the norm read (x itself where none was added) and
the weight; the scale is computed again.
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
    return importlib.import_module(f"mambakernels.norm.{name}")


def _forward(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    eps: float,
    residual_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """y and the residual stream; the latter empty where it would be x itself."""
    y, residual_out = _backend(backend).forward(x, weight, residual, eps, residual_dtype)
    return y, x.new_empty(0) if _is_x(x, residual, residual_dtype) else residual_out


def _backward(
    dy: Tensor,
    dresidual_out: Tensor | None,
    stream: Tensor,
    weight: Tensor,
    eps: float,
    x_dtype: torch.dtype,
    with_residual: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the weight, and of the residual in the stream's dtype.

    stream: what the norm read. The last one is empty unless `with_residual` holds and its dtype
    differs from x's: elsewhere the first one serves.
    """
    dx, dweight, dstream = _backend(backend).backward(
        dy, dresidual_out, stream, weight, eps, x_dtype, with_residual and stream.dtype != x_dtype
    )
    return dx, dweight.to(weight.dtype), stream.new_empty(0) if dstream is None else dstream


def _is_x(x: Tensor, residual: Tensor | None, residual_dtype: torch.dtype) -> bool:
    return residual is None and residual_dtype == x.dtype


# ---- registered operators: torch.compile, fake tensors, dispatch modes

_forward_op = torch.library.custom_op("mambakernels::rms_norm", _forward, mutates_args=())
_backward_op = torch.library.custom_op(
    "mambakernels::rms_norm_backward", _backward, mutates_args=()
)


@_forward_op.register_fake
def _(x, weight, residual, eps, residual_dtype, backend):
    y = x.new_empty(x.shape)
    if _is_x(x, residual, residual_dtype):
        return y, x.new_empty(0)
    return y, x.new_empty(x.shape, dtype=residual_dtype)


@_backward_op.register_fake
def _(dy, dresidual_out, stream, weight, eps, x_dtype, with_residual, backend):
    separate = with_residual and stream.dtype != x_dtype
    return (
        stream.new_empty(stream.shape, dtype=x_dtype),
        torch.empty_like(weight),
        stream.new_empty(stream.shape if separate else (0,)),
    )


def _save(ctx, inputs, output):
    x, weight, residual, ctx.eps, residual_dtype, ctx.backend = inputs
    ctx.x_dtype = x.dtype
    ctx.residual_dtype = None if residual is None else residual.dtype
    stream = x if _is_x(x, residual, residual_dtype) else output[1]
    ctx.save_for_backward(stream, weight)
    ctx.set_materialize_grads(False)


def _gradients(ctx, run, dy, dresidual_out):
    stream, weight = ctx.saved_tensors
    if dy is None:
        dy = stream.new_zeros(stream.shape, dtype=ctx.x_dtype)
    if dresidual_out is not None and dresidual_out.numel() != stream.numel():
        dresidual_out = None  # the empty stand-in for a stream that is x itself
    with_residual = ctx.residual_dtype is not None
    dx, dweight, dstream = run(
        dy, dresidual_out, stream, weight, ctx.eps, ctx.x_dtype, with_residual, ctx.backend
    )
    if not with_residual:
        return dx, dweight, None, None, None, None
    dresidual = dx if stream.dtype == ctx.x_dtype else dstream
    return dx, dweight, dresidual.to(ctx.residual_dtype), None, None, None


_short_way = differentiable(
    _forward_op, _backward_op, run_forward=_forward, run_backward=_backward, save=_save,
    gradients=_gradients, operation="rms_norm",
)  # fmt: skip


def rms_norm(*inputs) -> tuple[Tensor, Tensor]:
    """(y, residual stream) for the arguments of `_forward`, differentiable once."""
    if not untraced(inputs[0]):
        return _forward_op(*inputs)
    if needs_gradient(*inputs[:3]):
        return _short_way(*inputs)
    with torch.no_grad():
        return _forward(*inputs)
