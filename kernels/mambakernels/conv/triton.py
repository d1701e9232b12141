"""Causal depthwise convolution in plain Triton: a program walks time for a block of channels.

A thread keeps the weights of its channels, the last width - 1 inputs and the unfinished input
gradients in registers, so that nothing is read twice but a chunk's edge of width - 1 rows.
Forward: reads x and writes out once: 4 bytes an element in bfloat16. Backward: reads x and dout
and writes dx once (6 bytes), with one exp an element; the pre-activation is computed again, so
nothing is saved but the inputs. Each chunk keeps weight gradients of its own; these are added
in a fixed order, so that the same inputs give the same bits.
"""

# ruff: noqa: RUF005  (the compiler knows sums of tuples, not unpacking)
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mambakernels._checks import on_device
from mambakernels.conv.reference import final_state, run_starts


@dataclass(frozen=True)
class Tuning:
    """Channels and warps of a program, rows read ahead, the longest walk, programs wanted."""

    block: int
    warps: int
    ahead: int
    chunk: int = 256
    programs: int = 132 * 16

    def walk(self, batch: int, length: int, channels: int) -> tuple[int, int]:
        """Rows of a chunk, a multiple of `ahead`, and chunks of a sequence."""
        others = batch * triton.cdiv(channels, self.block)
        rows = triton.next_power_of_2(max(1, length * others // self.programs))
        rows = max(self.ahead, min(self.chunk, max(16, rows)))
        return rows, triton.cdiv(length, rows)


FORWARD = Tuning(block=512, warps=2, ahead=4)
BACKWARD = Tuning(block=256, warps=2, ahead=4)
_HEAVY = Tuning(block=128, warps=4, ahead=1)  # float64 and wide filters: registers run out
_INTERPRETED = Tuning(block=16, warps=1, ahead=2, chunk=16)


@triton.jit
def _input(x, initial, batch, row, length, channels, x_row, d, in_d, WIDTH: tl.constexpr):
    """A row of inputs before or within x; zeros beyond either end."""
    value = tl.load(x + row * x_row + d, mask=in_d & (row >= 0) & (row < length), other=0.0)
    if initial is not None:
        place = initial + (batch * (WIDTH - 1) + row + WIDTH - 1) * channels + d
        carried = tl.load(place, mask=in_d & (row < 0) & (row >= 1 - WIDTH), other=0.0)
        value = tl.where(row < 0, carried, value)
    return value


@triton.jit
def _first_of_segment(starts, batch, t, length, WIDTH: tl.constexpr):
    """Time at which t's segment starts; the first one's began before the sequence."""
    first = 1 - WIDTH
    if starts is not None:
        first = tl.load(starts + batch * length + t, mask=t < length, other=0)
    return first


@triton.jit
def _weights(weight, bias, d, in_d, WIDTH: tl.constexpr, SUM: tl.constexpr, BLOCK_D: tl.constexpr):
    w = ()
    for k in tl.static_range(WIDTH):
        w = w + (tl.load(weight + d * WIDTH + k, mask=in_d, other=0.0).to(SUM),)
    if bias is not None:
        b = tl.load(bias + d, mask=in_d, other=0.0).to(SUM)
    else:
        b = tl.zeros([BLOCK_D], SUM)
    return w, b


@triton.jit
def _window(
    x, initial, batch, first, length, channels, x_row, d, in_d,
    WIDTH: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The width - 1 inputs before `first`, oldest first."""
    window = ()
    for k in tl.static_range(WIDTH - 1):
        row = first - (WIDTH - 1) + k
        value = _input(x, initial, batch, row, length, channels, x_row, d, in_d, WIDTH)
        window = window + (value.to(SUM),)
    return window


@triton.jit
def _convolved(w, b, window, now, t, start, SEGMENTS: tl.constexpr, WIDTH: tl.constexpr):
    total = b + w[WIDTH - 1] * now
    for k in tl.static_range(WIDTH - 1):
        tap = window[k]
        if SEGMENTS:
            tap = tl.where(t - (WIDTH - 1) + k >= start, tap, 0.0)
        total += w[k] * tap
    return total


@triton.jit
def _forward(
    x, weight, bias, initial, starts, out, length, channels, x_batch, x_row, chunks, rows,
    WIDTH: tl.constexpr, SILU: tl.constexpr, SUM: tl.constexpr, BLOCK_D: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(channels, BLOCK_D)
    d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = d < channels
    batch = tl.cast(tl.program_id(0) // blocks // chunks, tl.int64)
    first = tl.cast(tl.program_id(0) // blocks % chunks, tl.int64) * rows
    x += batch * x_batch
    out += batch * length * channels
    SEGMENTS: tl.constexpr = starts is not None
    w, b = _weights(weight, bias, d, in_d, WIDTH, SUM, BLOCK_D)
    window = _window(x, initial, batch, first, length, channels, x_row, d, in_d, WIDTH, SUM)
    i = 0
    while i < rows:
        ahead = ()
        for r in tl.static_range(AHEAD):
            t = first + i + r
            ahead = ahead + (tl.load(x + t * x_row + d, mask=in_d & (t < length), other=0.0),)
        for r in tl.static_range(AHEAD):
            t = first + i + r
            now = ahead[r].to(SUM)
            start = _first_of_segment(starts, batch, t, length, WIDTH)
            total = _convolved(w, b, window, now, t, start, SEGMENTS, WIDTH)
            if SILU:
                total = total / (1.0 + tl.exp(-total))
            place = out + t * channels + d
            tl.store(place, total.to(out.dtype.element_ty), mask=in_d & (t < length))
            window = window[1:] + (now,)
        i += AHEAD


@triton.jit
def _dpre(total, dout, SILU: tl.constexpr):
    """The pre-activation's gradient."""
    if SILU:
        gate = 1.0 / (1.0 + tl.exp(-total))
        dout = dout * gate * (1.0 + total * (1.0 - gate))
    return dout


@triton.jit
def _finish(pending, w, dpre, t, start, SEGMENTS: tl.constexpr, WIDTH: tl.constexpr):
    """Add an output's share to the gradients of the inputs that it met: (finished, pending)."""
    grown = ()
    for k in tl.static_range(WIDTH - 1):
        share = w[k] * dpre
        if SEGMENTS:
            share = tl.where(t - (WIDTH - 1) + k >= start, share, 0.0)
        grown = grown + (pending[k] + share,)
    grown = grown + (w[WIDTH - 1] * dpre,)
    return grown[0], grown[1:]


@triton.jit
def _give(
    dx, dinitial, dfinal, starts, total, batch, s, low, high, length, channels, d, in_d,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Write the gradient of input s where low <= s < high; before 0 it is the initial state's."""
    own = in_d & (s >= low) & (s < high)
    if dfinal is not None:
        kept = s - (length - (WIDTH - 1))
        counts = own & (kept >= 0)
        if starts is not None:
            counts = counts & (s >= tl.load(starts + batch * length + length - 1))
        place = dfinal + (batch * (WIDTH - 1) + kept) * channels + d
        total += tl.load(place, mask=counts, other=0.0).to(total.dtype)
    place = dx + (batch * length + s) * channels + d
    tl.store(place, total.to(dx.dtype.element_ty), mask=own & (s >= 0))
    if dinitial is not None:
        place = dinitial + (batch * (WIDTH - 1) + s + WIDTH - 1) * channels + d
        tl.store(place, total.to(dinitial.dtype.element_ty), mask=own & (s < 0))


@triton.jit
def _backward(
    dout, dfinal, x, weight, bias, initial, starts, dx, dinitial, sums,
    length, channels, dout_batch, dout_row, x_batch, x_row, chunks, rows,
    WIDTH: tl.constexpr, SILU: tl.constexpr, SUM: tl.constexpr, BLOCK_D: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """sums (batch x chunks, WIDTH + 1, channels): this chunk's share of dweight and dbias."""
    blocks = tl.cdiv(channels, BLOCK_D)
    d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = d < channels
    item = tl.cast(tl.program_id(0) // blocks, tl.int64)
    batch = item // chunks
    first = item % chunks * rows
    last = tl.minimum(first + rows, length)
    x += batch * x_batch
    dout += batch * dout_batch
    SEGMENTS: tl.constexpr = starts is not None
    w, b = _weights(weight, bias, d, in_d, WIDTH, SUM, BLOCK_D)
    window = _window(x, initial, batch, first, length, channels, x_row, d, in_d, WIDTH, SUM)
    low = first
    if first == 0:
        low = first - (WIDTH - 1)
    pending = ()  # gradients of the inputs before t, to which later outputs still add
    dweight = ()
    for _ in tl.static_range(WIDTH - 1):
        pending = pending + (tl.zeros([BLOCK_D], SUM),)
    for _ in tl.static_range(WIDTH):
        dweight = dweight + (tl.zeros([BLOCK_D], SUM),)
    dbias = tl.zeros([BLOCK_D], SUM)
    i = 0
    while i < rows:
        ahead = ()
        ahead_dout = ()
        for r in tl.static_range(AHEAD):
            t = first + i + r
            ahead = ahead + (tl.load(x + t * x_row + d, mask=in_d & (t < length), other=0.0),)
            value = tl.load(dout + t * dout_row + d, mask=in_d & (t < length), other=0.0)
            ahead_dout = ahead_dout + (value,)
        for r in tl.static_range(AHEAD):
            t = first + i + r
            now = ahead[r].to(SUM)
            start = _first_of_segment(starts, batch, t, length, WIDTH)
            total = _convolved(w, b, window, now, t, start, SEGMENTS, WIDTH)
            dpre = _dpre(total, ahead_dout[r].to(SUM), SILU)
            dbias += dpre
            grown = ()
            for k in tl.static_range(WIDTH - 1):
                tap = window[k]
                if SEGMENTS:
                    tap = tl.where(t - (WIDTH - 1) + k >= start, tap, 0.0)
                grown = grown + (dweight[k] + dpre * tap,)
            dweight = grown + (dweight[WIDTH - 1] + dpre * now,)
            done, pending = _finish(pending, w, dpre, t, start, SEGMENTS, WIDTH)
            _give(
                dx, dinitial, dfinal, starts, done, batch, t - (WIDTH - 1), low, last,
                length, channels, d, in_d, WIDTH,
            )  # fmt: skip
            window = window[1:] + (now,)
        i += AHEAD
    for k in tl.static_range(WIDTH - 1):  # the next chunk's outputs that meet inputs of this one
        t = first + rows + k
        now = tl.load(x + t * x_row + d, mask=in_d & (t < length), other=0.0).to(SUM)
        value = tl.load(dout + t * dout_row + d, mask=in_d & (t < length), other=0.0).to(SUM)
        start = _first_of_segment(starts, batch, t, length, WIDTH)
        total = _convolved(w, b, window, now, t, start, SEGMENTS, WIDTH)
        dpre = _dpre(total, value, SILU)
        done, pending = _finish(pending, w, dpre, t, start, SEGMENTS, WIDTH)
        _give(
            dx, dinitial, dfinal, starts, done, batch, t - (WIDTH - 1), low, last,
            length, channels, d, in_d, WIDTH,
        )  # fmt: skip
        window = window[1:] + (now,)
    sums += item * (WIDTH + 1) * channels + d
    for k in tl.static_range(WIDTH):
        tl.store(sums + k * channels, dweight[k], mask=in_d)
    tl.store(sums + WIDTH * channels, dbias, mask=in_d)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    segment_ids: Tensor | None,
    silu: bool,
    *,
    tuning: Tuning | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs and the last width - 1 inputs, those of earlier segments zeroed."""
    batch, length, channels = x.shape
    width = weight.shape[1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        tuning = tuning or _choose(x, width, FORWARD)
        rows, chunks = tuning.walk(batch, length, channels)
        source, taps = _rows(x), _at_least_two(weight)
        with on_device(x):
            _forward[(batch * chunks * triton.cdiv(channels, tuning.block),)](
                source, taps, _whole(bias), _whole(initial_state), _starts(segment_ids, taps), out,
                length, channels, source.stride(0), source.stride(1), chunks, rows,
                WIDTH=taps.shape[1], SILU=silu, SUM=_sum(x), BLOCK_D=tuning.block,
                AHEAD=tuning.ahead, num_warps=tuning.warps,
            )  # fmt: skip
    return out, final_state(x, width, initial_state, segment_ids)


def backward(
    dout: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    segment_ids: Tensor | None,
    silu: bool,
    *,
    tuning: Tuning | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and initial state, the weights' in the sums' dtype."""
    batch, length, channels = x.shape
    width = weight.shape[1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    given = initial_state is not None and initial_state.numel() > 0
    dinitial = x.new_empty(initial_state.shape if initial_state is not None else (0,))
    if not dx.numel():
        dinitial.copy_(dfinal) if given and dfinal is not None else dinitial.zero_()
        zero = x.new_zeros(channels, width + 1, dtype=dtype)
        return dx, zero[:, :width].contiguous(), zero[:, width].contiguous(), dinitial
    tuning = tuning or _choose(x, width, BACKWARD)
    rows, chunks = tuning.walk(batch, length, channels)
    source, incoming, taps = _rows(x), _rows(dout), _at_least_two(weight)
    padded = taps.shape[1]
    sums = x.new_empty(batch * chunks, padded + 1, channels, dtype=dtype)
    with on_device(x):
        _backward[(batch * chunks * triton.cdiv(channels, tuning.block),)](
            incoming, _whole(dfinal), source, taps, _whole(bias), _whole(initial_state),
            _starts(segment_ids, taps), dx, dinitial if given else None, sums,
            length, channels, incoming.stride(0), incoming.stride(1),
            source.stride(0), source.stride(1), chunks, rows,
            WIDTH=padded, SILU=silu, SUM=_sum(x), BLOCK_D=tuning.block,
            AHEAD=tuning.ahead, num_warps=tuning.warps,
        )  # fmt: skip
    total = sums.sum(0)
    return dx, total[padded - width : padded].t().contiguous(), total[padded].clone(), dinitial


def _choose(x: Tensor, width: int, usual: Tuning) -> Tuning:
    if triton.knobs.runtime.interpret:
        return _INTERPRETED
    return _HEAVY if x.dtype == torch.float64 or width > 4 else usual


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _whole(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None or tensor.numel() == 0 else tensor.contiguous()


def _at_least_two(weight: Tensor) -> Tensor:
    """A filter of width 1 with a zero tap before it: the kernels keep at least one past input."""
    return torch.nn.functional.pad(weight, (1, 0)) if weight.shape[1] == 1 else weight.contiguous()


def _starts(segment_ids: Tensor | None, taps: Tensor) -> Tensor | None:
    return None if segment_ids is None else run_starts(segment_ids, taps.shape[1] - 1).contiguous()


def _sum(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32
