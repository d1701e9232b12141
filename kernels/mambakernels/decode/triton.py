"""Decoding on a GPU: all blocks of a stage in one launch, a program a row; head and draw in one.

A step of a small model is many tiny dependent operations, and a launch costs more than most of
them. So one program walks the blocks of a stage: norm, in_proj, convolution, selection, step of
the state, gate, out_proj, residual. Vectors that the next map sums over go through a scratch row
in global memory (the first-level cache in truth), with a barrier of the program between.

Reads each weight once a row (from the second-level cache) and reads and writes each state once.
Plain Triton: the interpreter runs it too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mambakernels._checks import on_device
from mambakernels.scan.triton_primitives import sigmoid, softplus

_TILE = 16384  # weights of one tile
_STATES = 4096  # numbers of state of one tile


@triton.jit
def _stage(
    x, added, out, weights, conv, ssm, scratch, rows, x_row, added_row, out_row,
    LAYERS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, N: tl.constexpr, R: tl.constexpr,
    W: tl.constexpr, EPS: tl.constexpr, SIZE: tl.constexpr, SCRATCH: tl.constexpr, BD: tl.constexpr,
    BE: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, IN_K: tl.constexpr, IN_O: tl.constexpr,
    SELECT_K: tl.constexpr, OUT_K: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out = blocks(x + added) for one row; conv and ssm are changed in place."""
    P: tl.constexpr = R + 2 * N
    IN: tl.constexpr = D
    IN_BIAS: tl.constexpr = IN + D * 2 * E
    CONV: tl.constexpr = IN_BIAS + 2 * E
    CONV_BIAS: tl.constexpr = CONV + W * E
    SELECT: tl.constexpr = CONV_BIAS + E
    DELTA: tl.constexpr = SELECT + E * P
    DELTA_BIAS: tl.constexpr = DELTA + R * E
    RATES: tl.constexpr = DELTA_BIAS + E
    SKIP: tl.constexpr = RATES + E * N
    OUT: tl.constexpr = SKIP + E
    OUT_BIAS: tl.constexpr = OUT + E * D
    row = tl.cast(tl.program_id(0), tl.int64)
    d = tl.arange(0, BD)
    e = tl.arange(0, BE)
    n = tl.arange(0, BN)
    p = tl.arange(0, BP)
    in_d = d < D
    in_e = e < E
    memory = scratch + row * SCRATCH
    normed, mixed, u_at = memory, memory + D, memory + D + 2 * E
    selected, y_at = u_at + E, u_at + E + P
    stream = tl.load(x + row * x_row + d, mask=in_d, other=0.0).to(tl.float32)
    if added is not None:
        stream += tl.load(added + row * added_row + d, mask=in_d, other=0.0).to(tl.float32)
    for layer in range(LAYERS):
        base = weights + tl.cast(layer, tl.int64) * SIZE
        place = tl.cast(layer, tl.int64) * rows + row
        # norm
        scale = 1.0 / tl.sqrt(tl.sum(stream * stream, 0) / D + EPS)
        gain = tl.load(base + d, mask=in_d, other=0.0).to(tl.float32)
        tl.store(normed + d, stream * scale * gain, mask=in_d)
        tl.debug_barrier()
        # in_proj
        for first in range(0, 2 * E, IN_O):
            o = first + tl.arange(0, IN_O)
            in_o = o < 2 * E
            total = tl.load(base + IN_BIAS + o, mask=in_o, other=0.0).to(tl.float32)
            for begin in range(0, D, IN_K):
                k = begin + tl.arange(0, IN_K)
                inside = (k < D)[:, None] & in_o[None, :]
                tile = tl.load(
                    base + IN + k[:, None] * (2 * E) + o[None, :], mask=inside, other=0.0
                )
                value = tl.load(normed + k, mask=k < D, other=0.0)
                total += tl.sum(value[:, None] * tile.to(tl.float32), 0)
            tl.store(mixed + o, total, mask=in_o)
        tl.debug_barrier()
        # convolution
        now = tl.load(mixed + e, mask=in_e, other=0.0)
        total = tl.load(base + CONV_BIAS + e, mask=in_e, other=0.0).to(tl.float32)
        past = conv + place * ((W - 1) * E)
        for j in tl.static_range(W - 1):
            then = tl.load(past + j * E + e, mask=in_e, other=0.0)
            tap = tl.load(base + CONV + j * E + e, mask=in_e, other=0.0).to(tl.float32)
            total += then * tap
            if j > 0:
                tl.store(past + (j - 1) * E + e, then, mask=in_e)
        tap = tl.load(base + CONV + (W - 1) * E + e, mask=in_e, other=0.0).to(tl.float32)
        total += now * tap
        if W > 1:
            tl.store(past + (W - 2) * E + e, now, mask=in_e)
        tl.store(u_at + e, total * sigmoid(total), mask=in_e)
        tl.debug_barrier()
        # selection
        chosen = tl.zeros([BP], tl.float32)
        for begin in range(0, E, SELECT_K):
            k = begin + tl.arange(0, SELECT_K)
            inside = (k < E)[:, None] & (p < P)[None, :]
            tile = tl.load(base + SELECT + k[:, None] * P + p[None, :], mask=inside, other=0.0)
            value = tl.load(u_at + k, mask=k < E, other=0.0)
            chosen += tl.sum(value[:, None] * tile.to(tl.float32), 0)
        tl.store(selected + p, chosen, mask=p < P)
        tl.debug_barrier()
        # state and gate
        B = tl.load(selected + R + n, mask=n < N, other=0.0)
        C = tl.load(selected + R + N + n, mask=n < N, other=0.0)
        for first in range(0, E, CHANNELS):
            c = first + tl.arange(0, CHANNELS)
            in_c = c < E
            raw = tl.load(base + DELTA_BIAS + c, mask=in_c, other=0.0).to(tl.float32)
            for r in range(R):
                column = tl.load(base + DELTA + r * E + c, mask=in_c, other=0.0).to(tl.float32)
                raw += tl.load(selected + r) * column
            step = softplus(raw)
            u = tl.load(u_at + c, mask=in_c, other=0.0)
            at = c[:, None] * N + n[None, :]
            inside = in_c[:, None] & (n < N)[None, :]
            rates = tl.load(base + RATES + at, mask=inside, other=0.0).to(tl.float32)
            home = ssm + place * (E * N) + at
            h = tl.load(home, mask=inside, other=0.0) * tl.exp(step[:, None] * rates)
            h += (step * u)[:, None] * B[None, :]
            tl.store(home, h, mask=inside)
            y = tl.sum(h * C[None, :], 1)
            y += u * tl.load(base + SKIP + c, mask=in_c, other=0.0).to(tl.float32)
            gate = tl.load(mixed + E + c, mask=in_c, other=0.0)
            tl.store(y_at + c, y * gate * sigmoid(gate), mask=in_c)
        tl.debug_barrier()
        # out_proj and residual
        for begin in range(0, E, OUT_K):
            k = begin + tl.arange(0, OUT_K)
            inside = (k < E)[:, None] & in_d[None, :]
            tile = tl.load(base + OUT + k[:, None] * D + d[None, :], mask=inside, other=0.0)
            value = tl.load(y_at + k, mask=k < E, other=0.0)
            stream += tl.sum(value[:, None] * tile.to(tl.float32), 0)
        stream += tl.load(base + OUT_BIAS + d, mask=in_d, other=0.0).to(tl.float32)
    tl.store(out + row * out_row + d, stream, mask=in_d)


@triton.jit
def _head(
    x, norm, weight, bias, uniform, last, ended, symbols, logs, scores,
    uniform_row, symbols_row, inverse_temperature, allowed,
    D: tl.constexpr, V: tl.constexpr, EPS: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
    DRAW: tl.constexpr, END: tl.constexpr,
):  # fmt: skip
    """Scores of a row and, with DRAW, its next symbol by the inverse of their distribution."""
    row = tl.cast(tl.program_id(0), tl.int64)
    d = tl.arange(0, BD)
    v = tl.arange(0, BV)
    in_v = v < V
    value = tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    gain = tl.load(norm + d, mask=d < D, other=0.0).to(tl.float32)
    value = value * gain * (1.0 / tl.sqrt(tl.sum(value * value, 0) / D + EPS))
    inside = (d < D)[:, None] & in_v[None, :]
    tile = tl.load(weight + d[:, None] * V + v[None, :], mask=inside, other=0.0).to(tl.float32)
    score = tl.sum(value[:, None] * tile, 0)
    score += tl.load(bias + v, mask=in_v, other=0.0).to(tl.float32)
    if DRAW:
        score = tl.where(in_v, score, float("-inf"))
        log_sum = tl.max(score, 0) + tl.log(tl.sum(tl.exp(score - tl.max(score, 0)), 0))
        open_ = tl.where(v < allowed, score, float("-inf"))
        distance = (open_ - tl.max(open_, 0)).to(tl.float64) * inverse_temperature
        mass = tl.exp(distance)
        summed = tl.cumsum(mass, 0)
        aim = tl.load(uniform + row * uniform_row) * tl.max(summed, 0)
        symbol = tl.sum(((summed <= aim) & (v < allowed)).to(tl.int32), 0)
        symbol = tl.minimum(symbol, allowed - 1).to(tl.int64)
        log = tl.sum(tl.where(v == symbol, score, 0.0), 0) - log_sum
        if END >= 0:
            over = tl.load(ended + row)
            symbol = tl.where(over != 0, END, symbol)
            log = tl.where(over != 0, 0.0, log)
            tl.store(ended + row, (symbol == END).to(tl.int8))
        tl.store(last + row, symbol)
        tl.store(symbols + row * symbols_row, symbol)
        tl.store(logs + row * symbols_row, log)
    else:
        tl.store(scores + row * V + v, score, mask=in_v)


class StageShape(NamedTuple):
    """Sizes of a stage's blocks: width, inner channels, states, rank of delta, taps, epsilon."""

    width: int
    inner: int
    states: int
    rank: int
    taps: int
    eps: float

    @property
    def scratch(self) -> int:
        """Numbers of scratch memory a row."""
        return self.width + 4 * self.inner + self.rank + 2 * self.states


def stage(
    shape: StageShape,
    x: Tensor,
    added: Tensor | None,
    out: Tensor,
    weights: Tensor,
    conv: Tensor,
    ssm: Tensor,
    scratch: Tensor,
) -> None:
    """out (rows, D) = the blocks' outputs for x + added, both (rows, D) with rows of any stride.

    weights: (layers, numbers), each layer's parts one after the other: norm (D), in_proj
    transposed (D, 2 E) and bias, convolution (W, E) and bias, x_proj transposed (E, R + 2 N),
    dt_proj transposed (R, E) and bias, A (E, N), D (E), out_proj transposed (E, D) and bias.
    conv (layers, rows, W - 1, E) and ssm (layers, rows, E, N), float32, are changed in place.
    scratch: (rows, shape.scratch) float32 of this call alone.
    """
    D, E, N, R, W, eps = shape
    BD, BE = triton.next_power_of_2(D), triton.next_power_of_2(E)
    BN, BP = triton.next_power_of_2(N), triton.next_power_of_2(R + 2 * N)
    IN_O = min(256, triton.next_power_of_2(2 * E))
    with on_device(x):
        _stage[(x.shape[0],)](
            x, added, out, weights, conv, ssm, scratch, x.shape[0],
            x.stride(0), 0 if added is None else added.stride(0), out.stride(0),
            weights.shape[0], D, E, N, R, W, eps, weights.shape[1], shape.scratch, BD, BE, BN, BP,
            IN_K=min(BD, _TILE // IN_O), IN_O=IN_O, SELECT_K=min(BE, max(1, _TILE // BP)),
            OUT_K=min(BE, max(1, _TILE // BD)), CHANNELS=min(BE, max(1, _STATES // BN)),
            num_warps=8,
        )  # fmt: skip


def head(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    scores: Tensor | None = None,
    uniform: Tensor | None = None,
    last: Tensor | None = None,
    ended: Tensor | None = None,
    symbols: Tensor | None = None,
    logs: Tensor | None = None,
    temperature: float = 1.0,
    allowed: int | None = None,
    end: int | None = None,
) -> None:
    """Scores (rows, V) of x (rows, D) into `scores`, or a symbol a row drawn from them.

    weight: (D, V). With `uniform` (rows,) float64: `last`, `symbols` (int64) and `logs` (float32)
    are written, `ended` (int8) is read and written where there is an `end`; `symbols` and `logs`
    have rows of one stride. Only symbols below `allowed` are drawn; temperature above 0.
    """
    rows, D = x.shape
    V = weight.shape[1]
    draw = uniform is not None
    with on_device(x):
        _head[(rows,)](
            x, norm, weight, bias, uniform, last, ended, symbols, logs, scores,
            uniform.stride(0) if uniform is not None else 0,
            symbols.stride(0) if symbols is not None else 0,
            1.0 / temperature, V if allowed is None else allowed,
            D, V, eps, triton.next_power_of_2(D), triton.next_power_of_2(V), DRAW=draw,
            END=-1 if end is None else end, num_warps=8,
        )  # fmt: skip


def pack(parts: list[Tensor]) -> Tensor:
    """One layer's parts, in `stage`'s order, as a flat row."""
    return torch.cat([part.detach().contiguous().flatten() for part in parts])
