"""Decoding on a GPU: all S4D blocks of a stage in one launch, a program a row.

As `mambakernels.decode.triton` does for Mamba blocks: norm, one step of the complex recurrence,
GELU, out_proj and its gate, residual, and, where there is one, norm and gated MLP. Reads each
weight once a row and reads and writes each state once. Decays are float64, as in the modules: a
mode's phase must hold over a long memory.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from mambakernels._checks import on_device
from mambakernels.scan.triton_primitives import sigmoid

_TILE = 8192  # weights of one of two tiles that are read together
_STATES = 2048  # modes of one tile


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _norm(stream, weight, out, d, inside, D: tl.constexpr, EPS: tl.constexpr):
    scale = 1.0 / tl.sqrt(tl.sum(stream * stream, 0) / D + EPS)
    tl.store(out + d, stream * scale * tl.load(weight + d, mask=inside, other=0.0), mask=inside)
    tl.debug_barrier()


@triton.jit
def _stage(
    x, added, out, weights, decays, ssm, scratch, rows, x_row, added_row, out_row,
    LAYERS: tl.constexpr, D: tl.constexpr, M: tl.constexpr, H: tl.constexpr, EPS: tl.constexpr,
    SIZE: tl.constexpr, SCRATCH: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
    CHANNELS: tl.constexpr, OUT_K: tl.constexpr, HIDDEN: tl.constexpr, IN_K: tl.constexpr,
    FC2_K: tl.constexpr,
):  # fmt: skip
    """out = blocks(x + added) for one row; ssm is changed in place."""
    DRIVE: tl.constexpr = D
    READ: tl.constexpr = DRIVE + 2 * D * M
    SKIP: tl.constexpr = READ + 2 * D * M
    OUT: tl.constexpr = SKIP + D
    OUT_BIAS: tl.constexpr = OUT + 2 * D * D
    NORM2: tl.constexpr = OUT_BIAS + 2 * D
    FC1: tl.constexpr = NORM2 + D
    FC2: tl.constexpr = FC1 + 2 * D * H
    row = tl.cast(tl.program_id(0), tl.int64)
    d = tl.arange(0, BD)
    m = tl.arange(0, BM)
    in_d = d < D
    normed = scratch + row * SCRATCH
    y_at, hidden = normed + D, normed + 2 * D
    stream = tl.load(x + row * x_row + d, mask=in_d, other=0.0).to(tl.float32)
    if added is not None:
        stream += tl.load(added + row * added_row + d, mask=in_d, other=0.0).to(tl.float32)
    for layer in range(LAYERS):
        base = weights + tl.cast(layer, tl.int64) * SIZE
        decay = decays + tl.cast(layer, tl.int64) * (2 * D * M)
        home = ssm + (tl.cast(layer, tl.int64) * rows + row) * (2 * D * M)
        _norm(stream, base, normed, d, in_d, D, EPS)
        # state and output
        for first in range(0, D, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            in_c = c < D
            at = 2 * (c[:, None] * M + m[None, :])
            inside = in_c[:, None] & (m < M)[None, :]
            u = tl.load(normed + c, mask=in_c, other=0.0)
            a = tl.load(decay + at, mask=inside, other=0.0)
            b = tl.load(decay + at + 1, mask=inside, other=0.0)
            real = tl.load(home + at, mask=inside, other=0.0).to(tl.float64)
            imag = tl.load(home + at + 1, mask=inside, other=0.0).to(tl.float64)
            new = u[:, None] * tl.load(base + DRIVE + at, mask=inside, other=0.0)
            turned = u[:, None] * tl.load(base + DRIVE + at + 1, mask=inside, other=0.0)
            new = (new.to(tl.float64) + (a * real - b * imag)).to(tl.float32)
            turned = (turned.to(tl.float64) + (a * imag + b * real)).to(tl.float32)
            tl.store(home + at, new, mask=inside)
            tl.store(home + at + 1, turned, mask=inside)
            y = new * tl.load(base + READ + at, mask=inside, other=0.0)
            y -= turned * tl.load(base + READ + at + 1, mask=inside, other=0.0)
            total = 2.0 * tl.sum(y, 1) + u * tl.load(base + SKIP + c, mask=in_c, other=0.0)
            tl.store(y_at + c, _gelu(total), mask=in_c)
        tl.debug_barrier()
        # out_proj, its gate, residual
        value = tl.load(base + OUT_BIAS + d, mask=in_d, other=0.0)
        gate = tl.load(base + OUT_BIAS + D + d, mask=in_d, other=0.0)
        for begin in range(0, D, OUT_K):
            k = begin + tl.arange(0, OUT_K)
            tile = base + OUT + k[:, None] * (2 * D) + d[None, :]
            inside = (k < D)[:, None] & in_d[None, :]
            heard = tl.load(y_at + k, mask=k < D, other=0.0)[:, None]
            value += tl.sum(heard * tl.load(tile, mask=inside, other=0.0), 0)
            gate += tl.sum(heard * tl.load(tile + D, mask=inside, other=0.0), 0)
        stream += value * sigmoid(gate)
        if H > 0:
            _norm(stream, base + NORM2, normed, d, in_d, D, EPS)
            for first in range(0, H, HIDDEN):
                o = first + tl.arange(0, HIDDEN)
                up = tl.zeros([HIDDEN], tl.float32)
                side = tl.zeros([HIDDEN], tl.float32)
                for begin in range(0, D, IN_K):
                    k = begin + tl.arange(0, IN_K)
                    tile = base + FC1 + k[:, None] * (2 * H) + o[None, :]
                    inside = (k < D)[:, None] & (o < H)[None, :]
                    heard = tl.load(normed + k, mask=k < D, other=0.0)[:, None]
                    up += tl.sum(heard * tl.load(tile, mask=inside, other=0.0), 0)
                    side += tl.sum(heard * tl.load(tile + H, mask=inside, other=0.0), 0)
                tl.store(hidden + o, up * side * sigmoid(side), mask=o < H)
            tl.debug_barrier()
            for begin in range(0, H, FC2_K):
                k = begin + tl.arange(0, FC2_K)
                inside = (k < H)[:, None] & in_d[None, :]
                tile = tl.load(base + FC2 + k[:, None] * D + d[None, :], mask=inside, other=0.0)
                stream += tl.sum(tl.load(hidden + k, mask=k < H, other=0.0)[:, None] * tile, 0)
    tl.store(out + row * out_row + d, stream, mask=in_d)


class StageShape(NamedTuple):
    """Sizes of a stage's blocks: width, complex modes, hidden width of the MLP or 0, epsilon."""

    width: int
    modes: int
    hidden: int
    eps: float

    @property
    def scratch(self) -> int:
        """Numbers of scratch memory a row."""
        return 2 * self.width + self.hidden


def stage(
    shape: StageShape,
    x: Tensor,
    added: Tensor | None,
    out: Tensor,
    weights: Tensor,
    decays: Tensor,
    ssm: Tensor,
    scratch: Tensor,
) -> None:
    """out (rows, D) = the blocks' outputs for x + added, both (rows, D) with rows of any stride.

    weights: (layers, numbers) float32, each layer's parts one after the other: norm (D), b and c
    (D, M, 2) each, D (D), out_proj transposed (D, 2 D) and bias, and with an MLP its norm (D), fc1
    transposed (D, 2 H) and fc2 transposed (H, D). decays: (layers, D, M, 2) float64. ssm (layers,
    rows, D, M, 2) float32 is changed in place. Complex numbers are pairs. scratch: (rows,
    shape.scratch) float32 of this call alone.
    """
    D, M, H, eps = shape
    BD, BM = triton.next_power_of_2(D), triton.next_power_of_2(M)
    HIDDEN = min(128, triton.next_power_of_2(max(H, 1)))
    rest = max(1, _TILE // BD)
    with on_device(x):
        _stage[(x.shape[0],)](
            x, added, out, weights, decays, ssm, scratch, x.shape[0],
            x.stride(0), 0 if added is None else added.stride(0), out.stride(0),
            weights.shape[0], D, M, H, eps, weights.shape[1], shape.scratch, BD, BM,
            CHANNELS=min(BD, max(1, _STATES // BM)), OUT_K=min(BD, rest), HIDDEN=HIDDEN,
            IN_K=min(BD, _TILE // HIDDEN), FC2_K=min(triton.next_power_of_2(max(H, 1)), rest),
            num_warps=8,
        )  # fmt: skip
