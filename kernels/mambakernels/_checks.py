"""Checks of arguments that the operations share; every message names the argument."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_floating(name: str, tensor: object) -> None:
    """Raise TypeError unless `tensor` is a float32, bfloat16, float16 or float64 tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; a torch tensor is needed")
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{name} has dtype {tensor.dtype}; float32, bfloat16, float16 and float64 are "
            f"accepted: convert it with .to(torch.float32)"
        )


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], legend: str) -> None:
    """Raise ValueError unless `tensor` has this shape; `legend` spells it in letters."""
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; {legend} = {shape} is needed here"
        )


def check_device(name: str, tensor: Tensor, device: torch.device, first: str) -> None:
    """Raise ValueError unless `tensor` lives where the operation's first argument does."""
    if tensor.device != device:
        raise ValueError(
            f"{name} is on {tensor.device} and {first} on {device}: move {name} with "
            f".to({first}.device)"
        )


def check_segment_ids(segment_ids: object, batch: int, length: int, device: torch.device) -> None:
    """Raise unless `segment_ids` is an integer tensor (batch, length) on `device`."""
    if not isinstance(segment_ids, Tensor) or segment_ids.dtype not in _INTEGERS:
        found = segment_ids.dtype if isinstance(segment_ids, Tensor) else type(segment_ids).__name__
        raise TypeError(f"segment_ids has type {found}; a tensor of integers is needed")
    check_shape("segment_ids", segment_ids, (batch, length), "(batch, length)")
    check_device("segment_ids", segment_ids, device, "x")


def autocast_cast(tensor: Tensor) -> Tensor:
    """`tensor` in the autocast dtype where autocast is on for its device; float64 stays."""
    device = tensor.device.type
    if tensor.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor


def untraced(tensor: Tensor) -> bool:
    """Whether nothing watches this call, so that registered operators (0.2 ms each) can be spared.

    torch.compile, fake tensors, tensor subclasses and dispatch modes need the operator.
    """
    return (
        not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and torch._C._len_torch_dispatch_stack() == 0
    )


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for the gradient of any of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def on_device(tensor: Tensor) -> AbstractContextManager:
    """The tensor's GPU made current, where it is not: Triton launches on the current one."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)
