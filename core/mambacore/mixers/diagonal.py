"""Arithmetic of a complex diagonal, time-invariant system, without ever building its full kernel.

    h_t = a h_{t-1} + b u_t;   y_t = 2 Re(c h_t)        a, b, c: (d, n) complex

A power a^l with l = J i + j is a product of two entries of short tables, a^{J i} and a^j. So the
kernel, the outputs that a carried state makes and the final state are batched real matrix
products over 2n numbers, in memory of about 2n (J + L / J) a channel, where the Vandermonde matrix
of the textbook has n L.

A fast mode turns by several radians a step, over thousands of steps of memory: in float32 its
phase, or a itself, would be off by 1e-4 and more of the output at the far end. So log a and its
powers are float64, rounded once they are tables; the recurrence multiplies by a float64 a.

Shape suffixes: d channels, B batch, L length, n modes, J width of the fine table, I of the coarse,
G chunks of a scan.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_WIDTH = 256


class Tables(NamedTuple):
    """Powers and kernel of a block of `length` positions, shared by all blocks of a sequence.

    fine: (d, 2n, J) real and imaginary parts of a^j.
    coarse: (d, I, n) complex, a^{J i}.
    spectrum: transform of the kernel, padded to `size`.
    """

    fine: Tensor
    coarse: Tensor
    spectrum: Tensor
    size: int


class Diagonal(NamedTuple):
    """The discretised system, each (d, n): log a in complex128, b and c in the working dtype."""

    log_a: Tensor
    b: Tensor
    c: Tensor

    @staticmethod
    def discretise(log_dt: Tensor, log_A_real: Tensor, A_imag: Tensor, C: Tensor) -> Diagonal:
        """Zero-order hold: a = exp(delta A), b = (a - 1) / A, with A = -exp(log_A_real) + i A_imag.

        log_dt: (d,), log_A_real and A_imag: (d, n), C: (d, n, 2).
        """
        delta = log_dt.double().exp()[:, None]
        A = torch.complex(-log_A_real.double().exp(), A_imag.double())
        log_a = delta * A
        c = torch.view_as_complex(C)
        return Diagonal(log_a, (torch.expm1(log_a) / A).to(c.dtype), c)

    def power(self, exponent: int) -> Tensor:
        """a^exponent, (d, n), in the working dtype."""
        return (self.log_a * exponent).exp().to(self.c.dtype)

    def powers(self, count: int, stride: int = 1) -> Tensor:
        """(d, n, count): a^0, a^stride, a^(2 stride), ..., in the working dtype."""
        log_a = self.log_a[..., None] * stride
        side = math.ceil(math.sqrt(count))
        index = torch.arange(side, device=log_a.device)
        # Products of two float64 powers: far fewer exponentials, nothing lost.
        table = (log_a * (side * index)).exp()[..., None] * (log_a * index).exp()[..., None, :]
        return table.to(self.c.dtype).flatten(-2)[..., :count]

    def tables(self, length: int) -> Tables:
        """What `convolve` needs for blocks of at most `length` positions."""
        width = min(length, _WIDTH)
        fine = _stack(self.powers(width), dim=1)
        coarse = self.powers(math.ceil(length / width), stride=width).transpose(1, 2)
        kernel = _pair(2 * (self.c * self.b)[:, None] * coarse) @ fine
        size = _fast_size(2 * length - 1)
        return Tables(fine, coarse, torch.fft.rfft(kernel.flatten(1)[:, :length], size), size)


def convolve(
    system: Diagonal, tables: Tables, u: Tensor, carried: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Outputs (d, B, L) and final state (d, B, n) of one block u (d, B, L), by FFT."""
    channels, batch, length = u.shape
    y = torch.fft.irfft(torch.fft.rfft(u, tables.size) * tables.spectrum[:, None], tables.size)[
        ..., :length
    ]
    if carried is not None:
        y = y + respond(system, tables, carried, length)
    width = tables.fine.shape[-1]
    parts = math.ceil(length / width)
    coarse = tables.coarse[:, :parts]
    # Zeros on the left change no exponent.
    padded = torch.nn.functional.pad(u, (parts * width - length, 0))
    local = padded.reshape(channels, batch * parts, width) @ tables.fine.flip(2).transpose(1, 2)
    local = _unstack(local).view(channels, batch, parts, -1) * coarse.flip(1)[:, None]
    final = local.sum(dim=2) * system.b[:, None]
    if carried is not None:
        final = final + system.power(length)[:, None] * carried
    return y, final


def respond(system: Diagonal, tables: Tables, carried: Tensor, length: int) -> Tensor:
    """(d, B, L): what a state (d, B, n) before the first of `length` positions adds to outputs."""
    parts = math.ceil(length / tables.fine.shape[-1])
    entry = (2 * system.c * system.power(1))[:, None] * carried
    left = _pair(entry[:, :, None] * tables.coarse[:, None, :parts]).flatten(1, 2)
    return (left @ tables.fine).view(*carried.shape[:2], -1)[..., :length]


def step(system: Diagonal, u: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor]:
    """The recurrence itself, for one position: u (d, B, 1)."""
    h = system.b[:, None] * u
    if carried is not None:
        h = (h + system.log_a.exp()[:, None] * carried).to(h.dtype)
    return 2 * (system.c[:, None] * h).real.sum(dim=-1, keepdim=True), h


def scan_segments(
    system: Diagonal,
    u: Tensor,
    carried: Tensor | None,
    numbers: Tensor,
    before: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Outputs (d, B, L) and final state of a block whose state is reset where `numbers` changes.

    Args:
        numbers: (B, L) run of every position, never decreasing (`mambacore.segments.runs`).
        before: (B,) run that `carried` belongs to.
        chunk: positions that see each other through a masked kernel; states pass between chunks.
    """
    whole = u.shape[-1] // chunk * chunk
    outputs = []
    if whole:
        y, carried = _scan_chunks(
            system, u[..., :whole], carried, numbers[:, :whole], before, chunk
        )
        before = numbers[:, whole - 1]
        outputs.append(y)
    if rest := u.shape[-1] - whole:
        y, carried = _scan_chunks(system, u[..., whole:], carried, numbers[:, whole:], before, rest)
        outputs.append(y)
    assert carried is not None
    return torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0], carried


def _scan_chunks(
    system: Diagonal, u: Tensor, carried: Tensor | None, numbers: Tensor, before: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    channels, batch, length = u.shape
    chunks = length // chunk
    u = u.reshape(channels, batch, chunks, chunk)
    numbers = numbers.reshape(batch, chunks, chunk)
    fine = _stack(system.powers(chunk), dim=1)
    kernel = (_pair(2 * (system.c * system.b)[:, None]) @ fine)[:, 0]

    # Inside a chunk: the kernel's Toeplitz matrix, cut where the run changes.
    lag = torch.arange(chunk, device=u.device)
    lag = lag[:, None] - lag
    toeplitz = torch.where(lag >= 0, kernel[:, lag.clamp(min=0)], kernel.new_zeros(()))
    same = (numbers[..., :, None] == numbers[..., None, :]).to(u.dtype)
    y = ((toeplitz[:, None, None] * same) @ u[..., None])[..., 0]

    # What each chunk's last run leaves behind, then a doubling scan over the chunks: two ends lie
    # in one run exactly when their numbers agree, because the numbers never decrease.
    ends = numbers[..., -1]
    ending = u * (numbers == ends[..., None])
    local = ending.flatten(1, 2) @ fine.flip(2).transpose(1, 2)
    local = _unstack(local).view(channels, batch, chunks, -1) * system.b[:, None, None]
    first = torch.zeros_like(local[:, :, 0]) if carried is None else carried
    states = torch.cat([first[:, :, None], local], dim=2)
    marks = torch.cat([before[:, None], ends], dim=1)
    reach = 1
    while reach <= chunks:
        decay = system.power(chunk * reach)[:, None, None]
        linked = (marks[:, reach:] == marks[:, :-reach])[..., None]
        arriving = states[:, :, :-reach] * decay * linked
        states = torch.cat([states[:, :, :reach], states[:, :, reach:] + arriving], dim=2)
        reach *= 2

    # What the state before each chunk adds to the positions that still belong to its run.
    entry = states[:, :, :-1] * (2 * system.c * system.power(1))[:, None, None]
    incoming = (_pair(entry).flatten(1, 2) @ fine).view(channels, batch, chunks, chunk)
    y = y + incoming * (numbers == marks[:, :-1, None])
    return y.flatten(2), states[:, :, -1]


def _stack(values: Tensor, dim: int) -> Tensor:
    """Real parts, then imaginary parts, along `dim`."""
    return torch.cat([values.real, values.imag], dim=dim)


def _pair(values: Tensor) -> Tensor:
    """The left factor (..., 2n) whose product with a `_stack` is the real part of the product."""
    return torch.cat([values.real, -values.imag], dim=-1)


def _unstack(values: Tensor) -> Tensor:
    """(..., 2n) back to (..., n) complex."""
    real, imaginary = values.chunk(2, dim=-1)
    return torch.complex(real.contiguous(), imaginary.contiguous())


def _fast_size(least: int) -> int:
    """The smallest FFT length of at least `least` among 2^k, 3 * 2^k and 5 * 2^k."""
    return min(factor << max(0, math.ceil(math.log2(least / factor))) for factor in (1, 3, 5))
