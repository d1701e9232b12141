"""The whole Mamba mixer as one operator that saves its input alone.

Forward: in-projection, convolution, selection, scan, out-projection. Backward: the same again but
for the out-projection, then the gradients in reverse order. The recomputation is that of section
3.3.2 of the Mamba paper (arXiv 2312.00752), carried on to the projections, because a matrix
product is cheap beside a scan and its output is four times its input.

Saved: x (batch, length, d_model), the weights and states that were given, and, where the backend
finds the scan's outputs on its way back, the scan's states at the starts of its chunks: without
them the scan runs forward once more. Freed on the way back as soon as possible, so that the
largest moment of the backward holds about nine tensors of (batch, length, channels).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from mambakernels._autograd import differentiable
from mambakernels._checks import needs_gradient, untraced
from mambakernels.conv import op as conv
from mambakernels.scan import op as scan

DIFFERENTIABLE = 14  # the first arguments: tensors that may want a gradient


def _select(
    u: Tensor, x_proj_weight: Tensor, dt_proj_weight: Tensor, states: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(low-rank delta, delta, B, C) of the convolved input."""
    rank = dt_proj_weight.shape[1]
    low, B, C = linear(u, x_proj_weight).split([rank, states, states], dim=-1)
    return low, linear(low, dt_proj_weight), B, C


class Handover(Protocol):
    """What connects the mixer's parts where a sequence is held in several places.

    One object a call; the parts' calls meet in the same order everywhere, first `inputs`, then
    `state`, and in the backward pass `state_gradient`, then `inputs_gradient`.
    """

    def inputs(self, inner: Tensor, rows: int) -> Tensor:
        """(batch, rows, channels): the convolution's inputs before this part, from those in it."""
        ...

    def state(self, decay: Tensor, state: Tensor) -> Tensor:
        """The state that enters this part, from what the part does to a state."""
        ...

    def state_gradient(self, gradient: Tensor) -> Tensor:
        """Of the state that leaves this part, from what this part alone gives for the one that
        enters it."""
        ...

    def inputs_gradient(self, gradient: Tensor) -> Tensor:
        """Of this part's last inputs, at most `rows`, from that of the inputs before it."""
        ...


def _forward(
    x: Tensor, in_weight: Tensor, in_bias: Tensor | None, conv_weight: Tensor,
    conv_bias: Tensor | None, x_proj_weight: Tensor, dt_proj_weight: Tensor, A: Tensor,
    D: Tensor | None, delta_bias: Tensor | None, out_weight: Tensor, out_bias: Tensor | None,
    conv_state: Tensor | None, ssm_state: Tensor | None, segment_ids: Tensor | None,
    zoh: bool, backend: str, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _mix(
        x, in_weight, in_bias, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A, D,
        delta_bias, out_weight, out_bias, conv_state, ssm_state, segment_ids, zoh, backend, save,
    )[:4]  # fmt: skip


def _mix(
    x: Tensor, in_weight: Tensor, in_bias: Tensor | None, conv_weight: Tensor,
    conv_bias: Tensor | None, x_proj_weight: Tensor, dt_proj_weight: Tensor, A: Tensor,
    D: Tensor | None, delta_bias: Tensor | None, out_weight: Tensor, out_bias: Tensor | None,
    conv_state: Tensor | None, ssm_state: Tensor | None, segment_ids: Tensor | None,
    zoh: bool, backend: str, save: bool, handover: Handover | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Output, both states after it, the scan's notes, both states before it."""
    with torch.autocast(x.device.type, enabled=False):
        u, z = linear(x, in_weight, in_bias).chunk(2, dim=-1)
        if handover is not None:
            conv_state = handover.inputs(u, conv_weight.shape[1] - 1)
        u, conv_final = conv._forward(
            u, conv_weight, conv_bias, conv_state, segment_ids, True, backend
        )
        _, delta, B, C = _select(u, x_proj_weight, dt_proj_weight, A.shape[1])
        chunk_states = None
        if handover is not None:
            decay, state, chunk_states = scan.summary_of(
                u, delta, A, B, delta_bias, segment_ids, True, zoh, False, backend
            )
            ssm_state = handover.state(decay, state)
        save = save and scan.saved_for_outputs(u, A, backend) != (0,)
        out, ssm_final, saved = scan._forward(
            u, delta, A, B, C, D, z, delta_bias, ssm_state, segment_ids,
            True, zoh, False, backend, save, chunk_states,
        )  # fmt: skip
        y = linear(out, out_weight, out_bias)
        return y, conv_final, ssm_final, saved, conv_state, ssm_state


def _backward(
    dy: Tensor, dconv_final: Tensor | None, dssm_final: Tensor | None, saved: Tensor,
    x: Tensor, in_weight: Tensor, in_bias: Tensor | None, conv_weight: Tensor,
    conv_bias: Tensor | None, x_proj_weight: Tensor, dt_proj_weight: Tensor, A: Tensor,
    D: Tensor | None, delta_bias: Tensor | None, out_weight: Tensor, out_bias: Tensor | None,
    conv_state: Tensor | None, ssm_state: Tensor | None, segment_ids: Tensor | None,
    zoh: bool, backend: str,
) -> list[Tensor]:  # fmt: skip
    return _mix_backward(
        dy, dconv_final, dssm_final, saved, x, in_weight, in_bias, conv_weight, conv_bias,
        x_proj_weight, dt_proj_weight, A, D, delta_bias, out_weight, out_bias, conv_state,
        ssm_state, segment_ids, zoh, backend,
    )  # fmt: skip


def _mix_backward(
    dy: Tensor, dconv_final: Tensor | None, dssm_final: Tensor | None, saved: Tensor,
    x: Tensor, in_weight: Tensor, in_bias: Tensor | None, conv_weight: Tensor,
    conv_bias: Tensor | None, x_proj_weight: Tensor, dt_proj_weight: Tensor, A: Tensor,
    D: Tensor | None, delta_bias: Tensor | None, out_weight: Tensor, out_bias: Tensor | None,
    conv_state: Tensor | None, ssm_state: Tensor | None, segment_ids: Tensor | None,
    zoh: bool, backend: str, handover: Handover | None = None,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the given ones of the first 14 arguments of `_forward`, in their order."""
    channels = A.shape[0]
    with torch.autocast(x.device.type, enabled=False):
        xz = linear(x, in_weight, in_bias)
        inner, z = xz.chunk(2, dim=-1)
        u, _ = conv._forward(inner, conv_weight, conv_bias, conv_state, segment_ids, True, backend)
        low, delta, B, C = _select(u, x_proj_weight, dt_proj_weight, A.shape[1])
        inputs = (u, delta, A, B, C, D, z, delta_bias, ssm_state, segment_ids, True, zoh, False)
        dout = torch.matmul(dy, out_weight)
        out, gradients = scan.outputs_and_gradients(
            dout, dssm_final, saved, *inputs, backend,
            exchange=None if handover is None else handover.state_gradient,
        )  # fmt: skip
        del dout, inputs
        dy_rows = dy.reshape(-1, dy.shape[-1])
        dout_weight = dy_rows.t() @ out.reshape(-1, channels)
        dout_bias = None if out_bias is None else dy_rows.sum(0)
        del out
        (du, ddelta, dA, dB, dC), (dD, dz, ddelta_bias, dssm_state) = gradients
        del gradients, delta, B, C
        ddelta_rows = ddelta.reshape(-1, channels)
        ddt_proj_weight = ddelta_rows.t() @ low.reshape(-1, low.shape[-1])
        dselected = torch.cat(
            [ddelta_rows @ dt_proj_weight, dB.flatten(0, 1), dC.flatten(0, 1)], dim=-1
        )
        del ddelta, ddelta_rows, dB, dC, low
        dx_proj_weight = dselected.t() @ u.reshape(-1, channels)
        du = du.view(-1, channels).addmm_(dselected, x_proj_weight).view(du.shape)
        del dselected, u
        dinner, dconv_weight, dconv_bias, dconv_state = conv._backward(
            du, dconv_final, inner, conv_weight, conv_bias, conv_state, segment_ids, True, backend
        )
        if handover is not None:
            dtail = handover.inputs_gradient(dconv_state)
            dinner[:, dinner.shape[1] - dtail.shape[1] :] += dtail
        del du, inner, z, xz
        assert dz is not None  # z was given
        # The two halves apart: joining them would copy as much as the convolution moves.
        dinner, dz, x_rows = dinner.flatten(0, 1), dz.flatten(0, 1), x.flatten(0, 1)
        din_weight = in_weight.new_empty(in_weight.shape)
        torch.mm(dinner.t(), x_rows, out=din_weight[:channels])
        torch.mm(dz.t(), x_rows, out=din_weight[channels:])
        din_bias = None if in_bias is None else torch.cat([dinner.sum(0), dz.sum(0)])
        dx = torch.mm(dinner, in_weight[:channels]).addmm_(dz, in_weight[channels:]).view(x.shape)
    every = (
        dx, din_weight, din_bias, dconv_weight, None if conv_bias is None else dconv_bias,
        dx_proj_weight, ddt_proj_weight, dA, dD, ddelta_bias, dout_weight, dout_bias,
        None if conv_state is None else dconv_state, dssm_state,
    )  # fmt: skip
    return [gradient for gradient in every if gradient is not None]


# ---- registered operators: torch.compile, fake tensors, dispatch modes

_forward_op = torch.library.custom_op("mambakernels::mamba_mixer", _forward, mutates_args=())
_backward_op = torch.library.custom_op(
    "mambakernels::mamba_mixer_backward", _backward, mutates_args=()
)


@_forward_op.register_fake
def _(*inputs):
    x, conv_weight, A, out_weight = inputs[0], inputs[3], inputs[7], inputs[10]
    batch, length, _ = x.shape
    channels, states = A.shape
    *_, backend, save = inputs
    shape = (0,)
    if save:
        u = x.new_empty(batch, length, channels)
        shape = scan.saved_for_outputs(u, A, backend)
    return (
        x.new_empty(batch, length, out_weight.shape[0]),
        x.new_empty(batch, conv_weight.shape[1] - 1, channels),
        x.new_empty(batch, channels, states, dtype=A.dtype),
        x.new_empty(shape, dtype=A.dtype),
    )


@_backward_op.register_fake
def _(dy, dconv_final, dssm_final, saved, *inputs):
    given = inputs[:DIFFERENTIABLE]
    return [t.new_empty(t.shape) for t in given if t is not None]


def _save(ctx, inputs, output):
    *tensors, ctx.zoh, ctx.backend, _ = inputs
    ctx.mark_non_differentiable(output[3])
    ctx.save_for_backward(output[3], *tensors)
    ctx.set_materialize_grads(False)


def _gradients(ctx, run, dy, dconv_final, dssm_final, _):
    saved, *tensors = ctx.saved_tensors
    if dy is None:
        x, out_weight = tensors[0], tensors[10]
        dy = x.new_zeros(*x.shape[:-1], out_weight.shape[0])
    found = iter(run(dy, dconv_final, dssm_final, saved, *tensors, ctx.zoh, ctx.backend))
    gradients = [None if t is None else next(found) for t in tensors[:DIFFERENTIABLE]]
    return *gradients, None, None, None, None


_short_way = differentiable(
    _forward_op, _backward_op, run_forward=_forward, run_backward=_backward, save=_save,
    gradients=_gradients, operation="mamba_mixer",
    instead="build the mixer from its parts (recompute=False) and backend='reference' where one is "
    "needed",
)  # fmt: skip


class _PartMixer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, handover, *inputs):  # type: ignore[override]
        *output, conv_state, ssm_state = _mix(*inputs, handover=handover)  # type: ignore[call-arg]
        ctx.handover = handover
        _save(ctx, (*inputs[:12], conv_state, ssm_state, *inputs[14:]), output)
        return tuple(output)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):  # type: ignore[override]
        def run(*arguments):
            return _mix_backward(*arguments, handover=ctx.handover)

        found = list(_gradients(ctx, run, *gradients))
        found[12:14] = None, None  # the states were not given
        return None, *found


def mamba_mixer_part(handover: Handover, *inputs) -> tuple[Tensor, Tensor, Tensor]:
    """As `mamba_mixer`, without states: they come from the parts before this one."""
    save = needs_gradient(*inputs[:DIFFERENTIABLE])
    arguments: Any = (*inputs, save)
    if save:
        return _PartMixer.apply(handover, *arguments)[:3]
    with torch.no_grad():
        return _mix(*arguments, handover=handover)[:3]


def mamba_mixer(*inputs) -> tuple[Tensor, Tensor, Tensor]:
    """(y, conv state, ssm state) for `_forward`'s arguments but the last, differentiable once."""
    save = needs_gradient(*inputs[:DIFFERENTIABLE])
    arguments: Any = (*inputs, save)
    if not untraced(inputs[0]):
        return _forward_op(*arguments)[:3]
    if save:
        return _short_way(*arguments)[:3]
    with torch.no_grad():
        return _forward(*arguments)[:3]
