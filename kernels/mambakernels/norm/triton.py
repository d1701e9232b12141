"""Root-mean-square norm with residual in plain Triton: a tile of whole rows at a time.

Forward: reads x and the residual and writes the stream and y, once each. Backward: reads the
stream and the gradients and writes dx (and the residual's gradient where its dtype differs), once
each; a program walks many rows and keeps a weight gradient of its own, which are added in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mambakernels._checks import on_device

_PROGRAMS = 132 * 8  # of the backward: each has a weight gradient


@triton.jit
def _forward(
    x, weight, residual, stream, y, rows, channels, x_row, residual_row,
    EPS: tl.constexpr, SUM: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.cast(tl.program_id(0), tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    in_d = d < channels
    inside = (row < rows)[:, None] & in_d[None, :]
    value = tl.load(x + row[:, None] * x_row + d[None, :], mask=inside, other=0.0).to(SUM)
    if residual is not None:
        place = residual + row[:, None] * residual_row + d[None, :]
        value += tl.load(place, mask=inside, other=0.0).to(SUM)
    place = row[:, None] * channels + d[None, :]
    if stream is not None:
        rounded = value.to(stream.dtype.element_ty)
        tl.store(stream + place, rounded, mask=inside)
        value = rounded.to(SUM)  # y is the norm of the stream that is returned
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 1) / channels + EPS)
    w = tl.load(weight + d, mask=in_d, other=0.0).to(SUM)
    normed = value * scale[:, None] * w[None, :]
    tl.store(y + place, normed.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    dy, dstream_out, stream, weight, dx, dstream, sums, rows, channels, share,
    dy_row, dstream_row, stream_row,
    EPS: tl.constexpr, SUM: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """With s = 1 / sqrt(mean(r^2) + eps), g = dy weight: dr = s g - r s^3 mean(g r)."""
    program = tl.cast(tl.program_id(0), tl.int64)
    d = tl.arange(0, BLOCK_D)
    in_d = d < channels
    w = tl.load(weight + d, mask=in_d, other=0.0).to(SUM)
    dweight = tl.zeros([BLOCK_D], SUM)
    first = program * share
    last = tl.minimum(first + share, rows)
    tile = first
    while tile < last:
        row = tile + tl.arange(0, ROWS)
        inside = (row < last)[:, None] & in_d[None, :]
        place = stream + row[:, None] * stream_row + d[None, :]
        r = tl.load(place, mask=inside, other=0.0).to(SUM)
        out = tl.load(dy + row[:, None] * dy_row + d[None, :], mask=inside, other=0.0).to(SUM)
        scale = 1.0 / tl.sqrt(tl.sum(r * r, 1) / channels + EPS)
        g = out * w[None, :]
        pull = scale * scale * scale * (tl.sum(g * r, 1) / channels)
        dweight += tl.sum(out * scale[:, None] * r, 0)
        dr = g * scale[:, None] - r * pull[:, None]
        if dstream_out is not None:
            place = dstream_out + row[:, None] * dstream_row + d[None, :]
            dr += tl.load(place, mask=inside, other=0.0).to(SUM)
        place = row[:, None] * channels + d[None, :]
        tl.store(dx + place, dr.to(dx.dtype.element_ty), mask=inside)
        if dstream is not None:
            tl.store(dstream + place, dr.to(dstream.dtype.element_ty), mask=inside)
        tile += ROWS
    tl.store(sums + program * channels + d, dweight, mask=in_d)


def forward(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, residual_dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """y and the residual stream; None for one that would be x itself."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    stream = None
    if residual is not None or residual_dtype != x.dtype:
        stream = torch.empty(x.shape, dtype=residual_dtype, device=x.device)
    if not y.numel():
        return y, stream
    x, residual = _rows(x), None if residual is None else _rows(residual)
    rows, channels = x.shape
    tile = _tile(channels)
    with on_device(x):
        _forward[(triton.cdiv(rows, tile["ROWS"]),)](
            x, weight.contiguous(), residual, stream, y, rows, channels,
            x.stride(0), 0 if residual is None else residual.stride(0),
            EPS=eps, SUM=_sum(x.dtype, residual_dtype), **tile,
        )  # fmt: skip
    return y, stream


def backward(
    dy: Tensor,
    dresidual_out: Tensor | None,
    stream: Tensor,
    weight: Tensor,
    eps: float,
    x_dtype: torch.dtype,
    separate: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dx, the weight's gradient, and, if `separate`, the residual's in the stream's dtype."""
    device = stream.device
    dx = torch.empty(stream.shape, dtype=x_dtype, device=device)
    dstream = torch.empty(stream.shape, dtype=stream.dtype, device=device) if separate else None
    wide = torch.float64 if torch.float64 in (x_dtype, stream.dtype) else torch.float32
    if not dx.numel():
        return dx, torch.zeros(weight.shape, dtype=wide, device=device), dstream
    stream, dy = _rows(stream), _rows(dy)
    rows, channels = stream.shape
    given = None if dresidual_out is None else _rows(dresidual_out)
    tile = _tile(channels)
    tiles = triton.cdiv(rows, tile["ROWS"])
    share = triton.cdiv(tiles, min(tiles, _PROGRAMS)) * tile["ROWS"]
    programs = triton.cdiv(rows, share)
    sums = torch.empty(programs, channels, dtype=wide, device=device)
    with on_device(dx):
        _backward[(programs,)](
            dy, given, stream, weight.contiguous(), dx, dstream, sums, rows, channels, share,
            dy.stride(0), 0 if given is None else given.stride(0), stream.stride(0),
            EPS=eps, SUM=_sum(x_dtype, stream.dtype), **tile,
        )  # fmt: skip
    return dx, sums.sum(0), dstream


def _rows(tensor: Tensor) -> Tensor:
    """As (rows, channels), the channels side by side; a view wherever one exists."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _sum(*dtypes: torch.dtype) -> tl.dtype:
    return tl.float64 if torch.float64 in dtypes else tl.float32


def _tile(channels: int) -> dict[str, int]:
    """Whole rows, as many as make about 2,048 elements."""
    block = triton.next_power_of_2(channels)
    return {"ROWS": max(1, min(16, 2048 // block)), "BLOCK_D": block}
