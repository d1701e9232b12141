"""The public functions of the scan: what they accept is checked here, and only here."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from mambakernels import backends
from mambakernels.scan import op

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class ScanSummary(NamedTuple):
    """What a stretch does to the state: h -> decay * h + state (after a segment change, decay 0).

    decay, state: (batch, channels, state size), in the state's dtype, differentiable.
    chunk_states, backend: what `selective_scan(..., summary=...)` takes over, so that a backend of
    two passes need not run the first one again.
    """

    decay: Tensor
    state: Tensor
    chunk_states: Tensor
    backend: str


def _name_shape(t: object) -> str:
    return str(tuple(t.shape)) if isinstance(t, Tensor) else type(t).__name__


def _check(name: str, t: Tensor, shape: tuple, meaning: str, u: Tensor) -> None:
    if isinstance(t, Tensor) and t.shape == shape and t.device == u.device:
        return
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} is a {type(t).__name__}: give a tensor of shape {meaning}")
    if t.shape != shape:
        raise ValueError(
            f"{name} has shape {tuple(t.shape)}, but u {tuple(u.shape)} asks for "
            f"{meaning} = {tuple(shape)}"
        )
    raise ValueError(f"{name} is on {t.device} and u on {u.device}: move them to one device")


def _check_float(name: str, t: Tensor, shape: tuple, meaning: str, u: Tensor) -> None:
    _check(name, t, shape, meaning, u)
    if t.dtype not in _FLOATS:
        raise TypeError(f"{name} is {t.dtype}: use float32, bfloat16, float16 or float64")


def _check_inputs(u, delta, A, B, delta_bias, discretization, segment_ids) -> tuple[int, ...]:
    if not isinstance(u, Tensor) or u.dim() != 3:
        raise ValueError(f"u is {_name_shape(u)}: give a tensor (batch, length, channels)")
    if u.dtype not in _FLOATS:
        raise TypeError(f"u is {u.dtype}: use float32, bfloat16, float16 or float64")
    if not isinstance(A, Tensor) or A.dim() != 2:
        raise ValueError(f"A is {_name_shape(A)}: give a real tensor (channels, state)")
    if discretization not in ("euler", "zoh"):
        raise ValueError(f'discretization={discretization!r} is unknown: use "euler" or "zoh"')
    batch, length, channels = u.shape
    state = A.shape[1]
    if channels == 0 or state == 0:
        raise ValueError(f"u has {channels} channels and A {state} states: at least 1 of each")
    _check_float("A", A, (channels, state), "(channels, state)", u)
    _check_float("delta", delta, (batch, length, channels), "(batch, length, channels)", u)
    _check_float("B", B, (batch, length, state), "(batch, length, state)", u)
    if delta_bias is not None:
        _check_float("delta_bias", delta_bias, (channels,), "(channels,)", u)
    if segment_ids is not None:
        _check("segment_ids", segment_ids, (batch, length), "(batch, length)", u)
        if segment_ids.dtype not in _INTEGERS:
            raise TypeError(f"segment_ids is {segment_ids.dtype}: use an integer dtype")
    return batch, length, channels, state


def _autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under autocast, in its dtype, as a matrix product would be; float64 stays."""
    device = tensors[0].device.type  # type: ignore[union-attr]
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, delta_bias: Tensor | None = None, *, delta_softplus: bool = False,
    discretization: str = "euler", initial_state: Tensor | None = None,
    return_final_state: Literal[False] = False, segment_ids: Tensor | None = None,
    reverse: bool = False, summary: ScanSummary | None = None, backend: str | None = None,
) -> Tensor: ...  # fmt: skip
@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, delta_bias: Tensor | None = None, *, delta_softplus: bool = False,
    discretization: str = "euler", initial_state: Tensor | None = None,
    return_final_state: Literal[True], segment_ids: Tensor | None = None,
    reverse: bool = False, summary: ScanSummary | None = None, backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, delta_bias: Tensor | None = None, *, delta_softplus: bool = False,
    discretization: str = "euler", initial_state: Tensor | None = None,
    return_final_state: bool = False, segment_ids: Tensor | None = None,
    reverse: bool = False, summary: ScanSummary | None = None, backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    discretization: str = "euler",
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    segment_ids: Tensor | None = None,
    reverse: bool = False,
    summary: ScanSummary | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run a selective state space model over a sequence, with a state that may be handed over.

    For every channel, with a state of n numbers::

        h_t = exp(delta_t A) h_(t-1) + Bbar_t u_t
        y_t = C_t h_t + D u_t
        out_t = y_t silu(z_t)

    where ``Bbar = delta B`` (euler) or ``(exp(delta A) - 1) / A * B`` (zoh).

    Args:
        u: the input, (batch, length, channels), float32, bfloat16, float16 or float64.
        delta: the step size, like u. With `delta_bias` and `delta_softplus` it is first
            ``softplus(delta + delta_bias)``. Large: the state forgets; 0: it is kept as it is.
        A: (channels, state), real; negative entries decay. B, C: (batch, length, state).
        D: weight of the input that skips the state, (channels,). z: a gate, like u.
        delta_bias: (channels,).
        delta_softplus: apply softplus to delta.
        discretization: "euler", which Mamba uses for B, or "zoh" (exact for a held input).
        initial_state: the state before position 0, (batch, channels, state); zeros if None.
            With `reverse`, the state after the last position.
        return_final_state: also return the state after the last position (before the first one
            with `reverse`); with segments, the last segment's.
        segment_ids: integers (batch, length); where they change, the state starts from zero.
            Position 0 always continues `initial_state`.
        reverse: run from the right end to the left.
        summary: what `scan_summary` gave for the same u, delta, A, B, delta_bias and options.
        backend: "cpu", "triton" or "reference"; None chooses by device.

    Returns:
        out, of u's shape and dtype; or (out, final_state) with final_state (batch, channels,
        state) in float32 (float64 for a float64 u). Both are differentiable, once, in every
        floating-point argument.

    Under autocast u, delta, B, C and z are cast to its dtype; A, D, delta_bias and states are not.
    A sequence of length 0 gives an empty output and the initial state.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device.
        BackendUnavailable: the backend asked for cannot run here.

    Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
    arXiv 2312.00752, equations 2 and 4 and algorithm 2.

    >>> import torch
    >>> from mambakernels import selective_scan
    >>> u, delta = torch.ones(1, 3, 1), torch.full((1, 3, 1), 0.6931472)
    >>> A, B = -torch.ones(1, 1), torch.ones(1, 3, 1)
    >>> selective_scan(u, delta, A, B, B, discretization="zoh").flatten().round(decimals=4)
    tensor([0.5000, 0.7500, 0.8750])
    """
    batch, length, channels, state = _check_inputs(
        u, delta, A, B, delta_bias, discretization, segment_ids
    )
    _check_float("C", C, (batch, length, state), "(batch, length, state)", u)
    if z is not None:
        _check_float("z", z, (batch, length, channels), "(batch, length, channels)", u)
    if D is not None:
        _check_float("D", D, (channels,), "(channels,)", u)
    if initial_state is not None:
        meaning = "(batch, channels, state)"
        _check_float("initial_state", initial_state, (batch, channels, state), meaning, u)
    name = backends.choose(backend, u.device.type, "scan")
    chunk_states = None
    if summary is not None:
        if not isinstance(summary, ScanSummary):
            raise TypeError(f"summary is a {type(summary).__name__}: give scan_summary's result")
        if summary.state.shape != (batch, channels, state):
            raise ValueError(
                f"summary is of a stretch whose state is {tuple(summary.state.shape)}, not "
                f"(batch, channels, state) = {(batch, channels, state)}: make it from these inputs"
            )
        if summary.backend == name:
            chunk_states = summary.chunk_states

    u, delta, B, C, z = _autocast(u, delta, B, C, z)  # type: ignore[assignment]
    dtype = op.state_dtype(u)
    A, D, delta_bias, initial_state = (  # type: ignore[assignment]
        t if t is None or t.dtype == dtype else t.to(dtype)
        for t in (A, D, delta_bias, initial_state)
    )
    if u.numel() == 0:
        name, chunk_states = "reference", None  # the definition covers it; kernels need not
    save = _needs_gradient(u, delta, A, B, C, D, z, delta_bias, initial_state)
    out, final_state, _ = op.scan(
        u, delta, A, B, C, D, z, delta_bias, initial_state, segment_ids,
        delta_softplus, discretization == "zoh", reverse, name, save, chunk_states,
    )  # fmt: skip
    return (out, final_state) if return_final_state else out


def scan_summary(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    discretization: str = "euler",
    segment_ids: Tensor | None = None,
    reverse: bool = False,
    backend: str | None = None,
) -> ScanSummary:
    """What a stretch of a scan does to the state, without its outputs.

    The stretch maps the state h that enters it to ``decay * h + state``, so that stretches can be
    scanned apart and joined: ``(d1, s1)`` then ``(d2, s2)`` is ``(d2 d1, d2 s1 + s2)``. With a
    segment change inside, decay is 0. A change between two stretches is the caller's to see.

    Args: as in `selective_scan`.
    Returns: a `ScanSummary`, differentiable (once) in u, delta, A, B and delta_bias.
    Raises: as `selective_scan`.

    Source: the associative operator of arXiv 2312.00752, section 3.3.2.

    >>> import torch
    >>> from mambakernels import scan_summary, selective_scan
    >>> u, delta = torch.rand(1, 5, 2), torch.rand(1, 5, 2)
    >>> A, B, h = -torch.rand(2, 3), torch.rand(1, 5, 3), torch.rand(1, 2, 3)
    >>> s = scan_summary(u, delta, A, B)
    >>> _, end = selective_scan(u, delta, A, B, B, initial_state=h, return_final_state=True)
    >>> torch.allclose(s.decay * h + s.state, end, atol=1e-6)
    True
    """
    _check_inputs(u, delta, A, B, delta_bias, discretization, segment_ids)
    name = backends.choose(backend, u.device.type, "scan")
    u, delta, B = _autocast(u, delta, B)  # type: ignore[assignment]
    dtype = op.state_dtype(u)
    delta_bias = None if delta_bias is None else delta_bias.to(dtype)
    decay, state, chunk_states = op.summary_op(
        u, delta, A.to(dtype), B, delta_bias, segment_ids, delta_softplus,
        discretization == "zoh", reverse, "reference" if u.numel() == 0 else name,
    )  # fmt: skip
    return ScanSummary(decay, state, chunk_states, name)
