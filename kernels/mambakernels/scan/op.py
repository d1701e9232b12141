"""The scan as torch operators: registered for torch.compile, a short way for eager calls.

The backends `reference`, `cpu` and `triton` are modules with one interface. Tensors come
detached and validated, the last dimension of u, delta, B, C, z, dout with stride 1 (their rows may
be strided views), A, D, delta_bias and the states contiguous and in the state's dtype (float64 if
u is, else float32), segment_ids as the user gave them (any integer dtype); optional ones are None.

    forward(u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids,
            delta_softplus, zoh, reverse, *, save=True, chunk_states=None)
        -> out (u's shape and dtype, contiguous), final_state (b, d, n), saved
    backward(dout, dfinal_state, saved, out, u, delta, A, B, C, D, z, delta_bias, initial_state,
             segment_ids, delta_softplus, zoh, reverse)
        -> du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial_state; None for absent inputs;
           each in its input's dtype and contiguous. dfinal_state may be None. A module with
           FILLS_OUTPUTS = True writes the forward pass's outputs into `out` unless it is None.
    summary(u, delta, A, B, delta_bias, segment_ids, delta_softplus, zoh, reverse)
        -> decay (b, d, n), state (b, d, n), chunk_states
    saved_shape(batch, length, channels, state) -> shape of `saved` (may meet symbolic integers)

`saved` is one tensor in the state's dtype: the backend's own notes for its backward. With
save=False no backward will follow: `saved` is then an empty (0,) tensor. `chunk_states` is what
the same backend's `summary` gave for the same inputs, a help that it may ignore; its shape is
`summary_shape(batch, length, channels, state)` if the module has that function, else (0,).

A registered operator costs 0.2 to 0.3 ms of Python a call in eager mode with gradients
(torch 2.11), an autograd.Function 0.04 ms; so eager calls take the latter. Both ways run the same
functions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mambakernels.scan.reference import step_size, stretch_decay

_SECOND_DERIVATIVE = (
    "selective_scan has no second derivative: its backward is a kernel that autograd cannot "
    "differentiate. Use mambakernels.scan.reference.definition, which is slow, for that."
)


@cache
def _import_backend(name: str) -> ModuleType:
    return importlib.import_module(f"mambakernels.scan.{name}")


def state_dtype(u: Tensor) -> torch.dtype:
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def _rows(t: Tensor | None) -> Tensor | None:
    """The tensor with its last dimension laid out one after another."""
    if t is None or t.is_contiguous() or t.stride(-1) == 1:
        return t
    return t.contiguous()


def _whole(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, segment_ids: Tensor | None,
    delta_softplus: bool, zoh: bool, reverse: bool,
    backend: str, save: bool, chunk_states: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _import_backend(backend).forward(
        _rows(u), _rows(delta), _whole(A), _rows(B), _rows(C), _whole(D), _rows(z),
        _whole(delta_bias), _whole(initial_state), segment_ids, delta_softplus, zoh, reverse,
        save=save, chunk_states=chunk_states,
    )  # fmt: skip


def _backward(
    dout: Tensor | None, dfinal_state: Tensor | None, saved: Tensor,
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, segment_ids: Tensor | None,
    delta_softplus: bool, zoh: bool, reverse: bool, backend: str, out: Tensor | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    if dout is None:
        dout = torch.zeros_like(u)
    return _import_backend(backend).backward(
        _rows(dout), _whole(dfinal_state), saved, out,
        _rows(u), _rows(delta), _whole(A), _rows(B), _rows(C), _whole(D), _rows(z),
        _whole(delta_bias), _whole(initial_state), segment_ids, delta_softplus, zoh, reverse,
    )  # fmt: skip


def saved_for_outputs(u: Tensor, A: Tensor, backend: str) -> tuple[int, ...]:
    """Shape of what `outputs_and_gradients` wants kept from the forward pass: maybe nothing."""
    module = _import_backend(backend)
    if not getattr(module, "FILLS_OUTPUTS", False):
        return (0,)
    return module.saved_shape(*u.shape, A.shape[1])


def outputs_and_gradients(
    dout: Tensor,
    dfinal_state: Tensor | None,
    saved: Tensor,
    *inputs: Any,
    exchange: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]]:
    """The scan's outputs, computed again, and its gradients: (u, delta, A, B, C), (D, z, bias, h).

    saved: the forward pass's, where the backend's backward fills the outputs on its way; elsewhere
        that pass is run again.
    inputs: those of `_forward` up to the backend's name.
    exchange: from the gradient of the initial state, as far as it comes from this stretch, to what
        the stretches after it add to the gradient of the final state.
    """
    fills = getattr(_import_backend(inputs[-1]), "FILLS_OUTPUTS", False)
    out = None
    if not fills:
        out, _, saved = _forward(*inputs, save=True, chunk_states=None)
    if exchange is not None:
        added = exchange(_adjoint(dout, dfinal_state, saved, *inputs))
        dfinal_state = added if dfinal_state is None else dfinal_state + added
    if fills:
        u = inputs[0]
        out = u.new_empty(u.shape)
        gradients = _backward(dout, dfinal_state, saved, *inputs, out=out)
    else:
        gradients = _backward(dout, dfinal_state, saved, *inputs)
    assert out is not None
    return out, (gradients[:5], gradients[5:])  # type: ignore[return-value]


def _adjoint(dout: Tensor, dfinal_state: Tensor | None, saved: Tensor, *inputs: Any) -> Tensor:
    """Gradient of the initial state: for Triton by a pass of its own, else the whole backward."""
    name = inputs[-1]
    if name == "triton" and dfinal_state is None:
        _, delta, A, _, C, _, z, bias, _, segment_ids, softplus, _, reverse, _ = inputs
        return _import_backend("triton_adjoint").adjoint(
            _rows(dout), saved, _rows(delta), _whole(A), _rows(C), _rows(z), _whole(bias),
            segment_ids, softplus, reverse,
        )  # fmt: skip
    gradient = _backward(dout, dfinal_state, saved, *inputs)[8]
    assert gradient is not None  # an initial state was given
    return gradient


# ---- registered operators: torch.compile, fake tensors, dispatch modes

_scan_op = torch.library.custom_op("mambakernels::selective_scan", _forward, mutates_args=())


@_scan_op.register_fake
def _(
    u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids, delta_softplus, zoh, reverse,
    backend, save, chunk_states,
):  # fmt: skip
    batch, length, channels = u.shape
    state = A.shape[1]
    shape = (0,)
    if save:
        shape = _import_backend(backend).saved_shape(batch, length, channels, state)
    dtype = state_dtype(u)
    return (
        u.new_empty(batch, length, channels),
        u.new_empty(batch, channels, state, dtype=dtype),
        u.new_empty(shape, dtype=dtype),
    )


@torch.library.custom_op("mambakernels::selective_scan_backward", mutates_args=())
def _backward_op(
    dout: Tensor | None, dfinal_state: Tensor | None, saved: Tensor,
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, segment_ids: Tensor | None,
    delta_softplus: bool, zoh: bool, reverse: bool, backend: str,
) -> list[Tensor]:  # fmt: skip
    gradients = _backward(
        dout, dfinal_state, saved, u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids,
        delta_softplus, zoh, reverse, backend,
    )  # fmt: skip
    return [g for g in gradients if g is not None]


@_backward_op.register_fake
def _(
    dout, dfinal_state, saved, u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids,
    delta_softplus, zoh, reverse, backend,
):  # fmt: skip
    given = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return [t.new_empty(t.shape) for t in given if t is not None]


def _refuse(ctx, *gradients):
    raise RuntimeError(_SECOND_DERIVATIVE)


_backward_op.register_autograd(_refuse)


def _remember(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(output[2], *inputs[:10])
    ctx.options = inputs[10:14]


def _op_backward(ctx, dout, dfinal_state, _):
    saved, *inputs = ctx.saved_tensors
    gradients = iter(_backward_op(dout, dfinal_state, saved, *inputs, *ctx.options))
    return *(None if t is None else next(gradients) for t in inputs[:9]), *(None,) * 7


_scan_op.register_autograd(_op_backward, setup_context=_remember)


# ---- the short way


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):  # type: ignore[override]
        output = _forward(*inputs)
        _remember(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx, dout, dfinal_state, _):  # type: ignore[override]
        if torch.is_grad_enabled():  # create_graph: the operator refuses a second derivative
            return _op_backward(ctx, dout, dfinal_state, _)
        saved, *inputs = ctx.saved_tensors
        return *_backward(dout, dfinal_state, saved, *inputs, *ctx.options), *(None,) * 7


def _plain(u: Tensor) -> bool:
    """Neither traced nor watched: nothing but the result can be wanted of this call."""
    return (
        not torch.compiler.is_compiling()
        and type(u) in (Tensor, torch.nn.Parameter)
        and torch._C._len_torch_dispatch_stack() == 0
    )


def scan(*inputs) -> tuple[Tensor, Tensor, Tensor]:
    """(out, final_state, saved) for `_forward`'s arguments, differentiable once."""
    if not _plain(inputs[0]):
        return _scan_op(*inputs)
    if not inputs[-2]:  # no gradient asked for
        with torch.no_grad():
            return _forward(*inputs)
    return _Scan.apply(*inputs)


# ---- the summary of a stretch


def summary_of(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, delta_bias: Tensor | None,
    segment_ids: Tensor | None, delta_softplus: bool, zoh: bool, reverse: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _import_backend(backend).summary(
        _rows(u), _rows(delta), _whole(A), _rows(B), _whole(delta_bias), segment_ids,
        delta_softplus, zoh, reverse,
    )  # fmt: skip


summary_op = torch.library.custom_op("mambakernels::scan_summary", summary_of, mutates_args=())


@summary_op.register_fake
def _(u, delta, A, B, delta_bias, segment_ids, delta_softplus, zoh, reverse, backend):
    batch, length, channels = u.shape
    state = A.shape[1]
    dtype = state_dtype(u)
    shape_of = getattr(_import_backend(backend), "summary_shape", lambda *sizes: (0,))
    return (
        u.new_empty(batch, channels, state, dtype=dtype),
        u.new_empty(batch, channels, state, dtype=dtype),
        u.new_empty(shape_of(batch, length, channels, state), dtype=dtype),
    )


def _remember_summary(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _summary_backward(ctx, ddecay, dstate, _):
    """The state is a scan's final state, so its gradients are a scan's; decay is closed-form."""
    u, delta, A, B, delta_bias, segment_ids = ctx.saved_tensors
    softplus, zoh, reverse, backend = ctx.options
    du = ddelta = dA = dB = dbias = None
    if dstate is not None:
        inputs = (u, delta, A, B, torch.zeros_like(B), None, None, delta_bias, None, segment_ids)
        _, _, saved = _scan_op(*inputs, softplus, zoh, reverse, backend, True, None)
        gradients = _backward_op(None, dstate, saved, *inputs, softplus, zoh, reverse, backend)
        du, ddelta, dA, dB = gradients[:4]
        dbias = gradients[5] if delta_bias is not None else None
    if ddecay is not None:
        total = step_size(delta, delta_bias, softplus, A.dtype).sum(1)
        dx = ddecay * stretch_decay(total, A, segment_ids)
        dtotal = (dx * A).sum(-1)[:, None].expand(delta.shape)
        if softplus:
            dtotal = dtotal * torch.sigmoid(step_size(delta, delta_bias, False, A.dtype))
        ddelta = dtotal.to(delta.dtype) + (0 if ddelta is None else ddelta)
        dA = (dx * total[:, :, None]).sum(0) + (0 if dA is None else dA)
        if delta_bias is not None:
            dbias = dtotal.sum((0, 1)) + (0 if dbias is None else dbias)
    return du, ddelta, dA, dB, dbias, None, None, None, None, None


summary_op.register_autograd(_summary_backward, setup_context=_remember_summary)
