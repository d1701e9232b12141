"""The convolution of `Diagonal` as batched matrix products: for GPUs, where an FFT moves too much.

Positions are cut into chunks of T = 128. With u a chunk, s the state before it and s' after it:

    y  = M u + Re(2 c a^(i+1) s)        M[i, j] = k[i - j] (+ D on the diagonal), per channel
    s' = a^T s + l,   l = sum_j a^(T-1-j) b u_j

M, the response to s and the map to l are one real matrix a channel each, shared by batch and
chunks. The states pass between chunks by the same idea again: W <= 16 chunks form a group whose
states are one product with a table of the powers (a^T)^k, groups form groups, up to one. The index
of a chunk has a digit a level; chunks lie in memory with the least significant digit outermost and
the batch innermost, so that each level's product runs on contiguous memory, without a copy.

Counted for each position and channel at n = 32 modes in float32: 512 flops forward, 1,024 backward
(at 50 TFLOP/s without tensor cores 0.17 and 0.34 ms of 16 x 16,000 x 64); 44 bytes forward (u cut,
read twice; l written, read twice; states written, read; y written, added to, put in order), 68
backward (0.19 and 0.29 ms at 3.8 TB/s), partly hidden behind the flops. Saved for the backward: u
and the states, 6 bytes. Half of the Toeplitz product multiplies zeros.

Shape suffixes: d channels, B batch, L length, n modes, T chunk, W chunks in a group, P all chunks.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mambacore.mixers.diagonal import Diagonal

_WIDTH = 128
_GROUP = 16


class _Cut(NamedTuple):
    """How B rows of L positions are cut: `digits` are the chunks in a group, level by level."""

    batch: int
    length: int
    width: int
    digits: tuple[int, ...]

    @staticmethod
    def of(batch: int, length: int) -> _Cut:
        width = min(length, _WIDTH)
        rest, digits = math.ceil(length / width), []
        while rest > _GROUP:
            # The least padding, then the smallest tables.
            least = min(math.ceil(rest / _GROUP), _GROUP)
            digit = min(
                range(max(least, 2), _GROUP + 1),
                key=lambda d: (d * math.ceil(rest / d), d * d + math.ceil(rest / d) ** 2),
            )
            digits.append(digit)
            rest = math.ceil(rest / digit)
        return _Cut(batch, length, width, (*digits, rest))

    @property
    def span(self) -> int:
        """Positions in a group of the highest level."""
        return math.prod(self.digits[:-1]) * self.width

    @property
    def last(self) -> tuple[int, ...]:
        """Digits of the chunk with the last position."""
        number, found = (self.length - 1) // self.width, []
        for digit in self.digits:
            found.append(number % digit)
            number //= digit
        return tuple(found)

    @property
    def rest(self) -> int:
        """Positions in that chunk, 1 to T."""
        return (self.length - 1) % self.width + 1

    def in_order(self, rows: Tensor) -> Tensor:
        """(d, B, digits in the order of time, T) view of rows (d, P, T)."""
        count = len(self.digits)
        rows = rows.view(len(rows), *self.digits, self.batch, self.width)
        return rows.permute(0, count + 1, *range(count, 0, -1), count + 2)

    def parts(self, values: Tensor) -> Tensor:
        """The same view of values (d, B, whole groups)."""
        return values.unflatten(2, (-1, *self.digits[-2::-1], self.width))

    def split(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows (d, P, T) of values (d, B, L), with zeros behind the last."""
        chunks = math.prod(self.digits) * self.batch
        rows = values.new_empty(values.shape[0], chunks, self.width, dtype=dtype)
        ordered = self.in_order(rows)
        groups, tail = divmod(self.length, self.span)
        body, end = values.split([self.length - tail, tail], dim=2)
        if groups:
            ordered[:, :, :groups].copy_(self.parts(body))
        if tail:
            end = torch.nn.functional.pad(end, (0, self.span - tail))
            ordered[:, :, groups:].copy_(self.parts(end))
        return rows

    def join(self, rows: Tensor, channels_last: torch.dtype | None = None) -> Tensor:
        """(d, B, L) of rows (d, P, T); in memory (B, L, d) and of a dtype, if one is given."""
        channels = rows.shape[0]
        if channels_last is None:
            joined = rows.new_empty(channels, self.batch, self.length)
        else:
            joined = rows.new_empty(self.batch, self.length, channels, dtype=channels_last)
            joined = joined.permute(2, 0, 1)
        ordered = self.in_order(rows)
        groups, tail = divmod(self.length, self.span)
        body, end = joined.split([self.length - tail, tail], dim=2)
        if groups:
            self.parts(body).copy_(ordered[:, :, :groups])
        if tail:
            end.copy_(ordered[:, :, groups:].flatten(2)[..., :tail])
        return joined


def convolve_chunks(
    system: Diagonal, skip: Tensor, u: Tensor, carried: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Outputs with the skip (d, B, L) and final state (d, B, n) of u (d, B, L).

    u may be of any floating dtype and order in memory; the arithmetic is in `system`'s. Nothing
    waits for the device, so that the whole can be recorded in a CUDA graph. Products are as exact
    as the device's matrix products: leave TF32 off, as PyTorch does.

    Args:
        skip: (d,) weight of u itself in the output.
        carried: (d, B, n) complex state before the first position, None for zero.
    """
    cut = _Cut.of(*u.shape[1:])
    b = system.b[:, None]
    # Within, states are in units of b: the input enters unweighted.
    before = None if carried is None else torch.view_as_real(carried / b).flatten(2)
    weight = 2 * system.c * system.b
    y, after = _Convolution.apply(u, system.log_a, weight, skip, before, cut)
    return y, torch.view_as_complex(after.unflatten(2, (-1, 2))) * b


class _Matrices(NamedTuple):
    """What multiplies chunks and states; one for each channel.

    powers: (d, n, T + 1) complex, a^0 to a^T.
    toeplitz: (d, T, T) k[i - j] at row j, column i >= j; zero below.
    ends: (d, 2n, T) real and imaginary part of every mode in turn of a^(T - 1 - j).
    response: (d, 2n, T) what multiplies the parts of a state for the output i: of w a^(i + 1).
    """

    powers: Tensor
    toeplitz: Tensor
    ends: Tensor
    response: Tensor

    @staticmethod
    def of(log_a: Tensor, weight: Tensor, skip: Tensor, width: int) -> _Matrices:
        index = torch.arange(width + 1, device=log_a.device, dtype=torch.float64)
        # float64 until they are tables.
        powers = (log_a[..., None] * index).exp().to(weight.dtype)
        weighted = weight[..., None] * powers
        kernel = weighted[..., :-1].real.sum(dim=1)
        kernel[:, 0] += skip
        # A row too long by one, repeated, moves one to the right in every row of a matrix.
        tiled = torch.nn.functional.pad(kernel, (0, width + 1))[:, None].expand(-1, width, -1)
        toeplitz = tiled.flatten(1)[:, :-width].unflatten(1, (width, -1))[..., :width]
        parts = torch.view_as_real(powers[..., :-1]).transpose(2, 3)
        response = torch.view_as_real(weighted[..., 1:].conj_physical()).transpose(2, 3)
        return _Matrices(powers, toeplitz, parts.flip(3).flatten(1, 2), response.flatten(1, 2))


class _Convolution(torch.autograd.Function):
    """y (d, B, L) and the final state (d, B, 2n)."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        log_a: Tensor,
        weight: Tensor,
        skip: Tensor,
        carried: Tensor | None,
        cut: _Cut,
    ) -> tuple[Tensor, Tensor]:
        matrices = _Matrices.of(log_a, weight, skip, cut.width)
        tables = _tables(log_a, cut, skip.dtype)
        rows = cut.split(u, skip.dtype)
        states = _empty_slots(rows, matrices.ends.shape[1], cut)
        inner = rows.shape[1] // cut.digits[0]
        _product(matrices.ends, rows.mT, states[..., inner:])
        border = None if carried is None else carried.mT
        states = _pass_on(states, tables, border, adjoint=False)[..., :-inner]
        y = rows @ matrices.toeplitz
        y.baddbmm_(states.mT, matrices.response)
        ends = matrices.ends[..., cut.width - cut.rest :]
        after = _times(_last(states.mT, cut), matrices.powers[:, None, :, cut.rest])
        after.baddbmm_(_last(rows, cut)[..., : cut.rest], ends.mT)
        ctx.save_for_backward(rows, states, log_a, weight, *matrices, *tables)
        ctx.cut, ctx.dtype, ctx.carries = cut, u.dtype, carried is not None
        ctx.set_materialize_grads(False)
        return cut.join(y), after

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, states, log_a, weight, *rest = ctx.saved_tensors
        matrices, tables = _Matrices(*rest[:4]), rest[4:]
        cut: _Cut = ctx.cut
        with torch.autocast(rows.device.type, enabled=False):
            output, after = grads
            dy = torch.zeros_like(rows) if output is None else cut.split(output, rows.dtype)
            inner = rows.shape[1] // cut.digits[0]
            slots = _empty_slots(rows, states.shape[1], cut)
            _product(matrices.response, dy.mT, slots[..., :-inner])
            if after is not None:
                power = matrices.powers[:, None, :, cut.rest].conj()
                _last(slots[..., :-inner].mT, cut).add_(_times(after, power))
            # Slot 0 is the gradient of the state before a group, the others of what chunks add.
            slots = _pass_on(slots, tables, None, adjoint=True)
            dlocal = slots[..., inner:]
            du = dy @ matrices.toeplitz.mT
            du.baddbmm_(dlocal.mT, matrices.ends)
            dends = dlocal @ rows
            dpower = _decay_gradient(dlocal, states, log_a, cut.width)
            if after is not None:
                first = cut.width - cut.rest
                _last(du, cut)[..., : cut.rest].baddbmm_(after, matrices.ends[..., first:])
                dends[..., first:].baddbmm_(after.mT, _last(rows, cut)[..., : cut.rest])
                last = _last(states.mT, cut).mT
                dpower += _decay_gradient(after.mT, last, log_a, cut.rest)
            found = _matrix_gradients(matrices, log_a, weight, rows.mT @ dy, dends, states @ dy)
            dlog_a, dweight, dskip = found
            dcarried = slots[..., : cut.batch].mT if ctx.carries else None
            du = cut.join(du, channels_last=ctx.dtype)
            return du, dlog_a + dpower, dweight, dskip, dcarried, None


def _matrix_gradients(
    matrices: _Matrices,
    log_a: Tensor,
    weight: Tensor,
    dtoeplitz: Tensor,
    dends: Tensor,
    dresponse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of log a, the weight and the skip through the matrices."""
    width = dtoeplitz.shape[1]
    padded = torch.nn.functional.pad(dtoeplitz, (0, width))
    diagonals = padded.as_strided(dtoeplitz.shape, (2 * width * width, 2 * width + 1, 1))
    dkernel = diagonals.sum(dim=1)
    # Of w a^l: in the kernel for l < T, in the response for l > 0. In float64, as sums that cancel.
    parts = log_a.real.new_zeros(*log_a.shape, width + 1, 2)
    real, imaginary = parts.unbind(-1)
    dresponse = dresponse.unflatten(1, (-1, 2))
    real[..., 1:] = dresponse[:, :, 0]
    imaginary[..., 1:] -= dresponse[:, :, 1]
    real[..., :-1] += dkernel[:, None]
    turned = torch.view_as_complex(parts) * matrices.powers.conj()
    # A power's gradient times its conjugate, weighted by the exponent, is log a's.
    total = turned * weight.conj()[..., None]
    dends = dends.unflatten(1, (-1, 2)).flip(3).double()
    ends = torch.complex(dends[:, :, 0], dends[:, :, 1])
    total[..., :-1] += ends * matrices.powers[..., :-1].conj()
    index = torch.arange(width + 1, device=log_a.device, dtype=torch.float64)
    return (total * index).sum(dim=-1), turned.sum(dim=-1), dkernel[:, 0]


def _empty_slots(rows: Tensor, modes: int, cut: _Cut) -> Tensor:
    """(d, 2n, (W + 1) P / W): a group has room for its W chunks and the state at its border."""
    inner = rows.shape[1] // cut.digits[0]
    return rows.new_empty(len(rows), modes, (cut.digits[0] + 1) * inner)


def _last(chunks: Tensor, cut: _Cut) -> Tensor:
    """(d, B, k) view of (d, P, k): the chunk with the last position."""
    return chunks.unflatten(1, (*cut.digits, cut.batch))[(slice(None), *cut.last)]


def _times(parts: Tensor, factor: Tensor) -> Tensor:
    """Numbers (d, B, 2n), real and imaginary part in turn, times complex (d, 1, n)."""
    values = torch.view_as_complex(parts.contiguous().unflatten(2, (-1, 2)))
    return torch.view_as_real(values * factor).flatten(2)


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out = left @ right, into a strided view, whatever it held."""
    out.baddbmm_(left, right, beta=0)


def _tables(log_a: Tensor, cut: _Cut, dtype: torch.dtype) -> list[Tensor]:
    """A level's powers p^(i - j), i >= j, as real matrices (d n, 2 (W + 1), 2 (W + 1)).

    Row (part, i): the state after i of a group's chunks; column (part, j): j = 0 the state before
    them, then what each adds.
    """
    found = []
    stride = cut.width
    index = torch.arange(max(cut.digits) + 1, device=log_a.device, dtype=torch.float64)
    lags = (index[:, None] - index).clamp(min=0)
    for digit in cut.digits:
        slots = digit + 1
        values = ((log_a * stride)[..., None, None] * lags[:slots, :slots]).exp().tril()
        parts = torch.view_as_real(torch.stack([values, 1j * values], dim=-1))
        table = parts.new_empty(*log_a.shape, 2, slots, 2, slots, dtype=dtype)
        table.copy_(parts.permute(0, 1, 5, 2, 4, 3))
        found.append(table.view(-1, 2 * slots, 2 * slots))
        stride *= digit
    return found


def _pass_on(
    slots: Tensor, tables: list[Tensor], border: Tensor | None, *, adjoint: bool
) -> Tensor:
    """States before each chunk (slots 0 to W - 1) from what the chunks add (slots 1 to W).

    adjoint: the transpose, back in time: from the gradients of the states (slots 0 to W - 1) to
    those of what the chunks add (slots 1 to W). The slot left over is written here.

    Args:
        slots: (d, 2n, (W + 1) R).
        border: (d, 2n, B) what comes in at the end where time begins, None for zero.
    """
    table, *above = tables
    size = table.shape[1]
    inner = 2 * slots.shape[2] // size
    square = slots.view(len(table), size, inner)
    near = slots[..., -inner:] if adjoint else slots[..., :inner]
    if not above:
        near.zero_() if border is None else near.copy_(border)
    else:
        near.zero_()
        parted = table.view(len(table), 2, size // 2, 2, size // 2)
        leaving = parted[..., 0].flatten(1, 2).mT if adjoint else parted[:, :, -1].flatten(2)
        digit = above[0].shape[1] // 2 - 1
        coarser = inner // digit
        groups = slots.new_empty(*slots.shape[:2], inner + coarser)
        body = groups[..., :-coarser] if adjoint else groups[..., coarser:]
        _product(leaving, square, body.view(len(table), 2, inner))
        groups = _pass_on(groups, above, border, adjoint=adjoint)
        near.copy_(groups[..., coarser:] if adjoint else groups[..., :-coarser])
    return ((table.mT if adjoint else table) @ square).view(slots.shape)


def _decay_gradient(dresult: Tensor, states: Tensor, log_a: Tensor, exponent: int) -> Tensor:
    """Gradient of log a through results a^exponent s, both (d, 2n, any): of dresult conj(...)."""
    pairs = (dresult @ states.mT).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    pairs = pairs.diagonal(dim1=1, dim2=3).double()
    total = torch.complex(pairs[:, 0, 0] + pairs[:, 1, 1], pairs[:, 1, 0] - pairs[:, 0, 1])
    return total * (log_a * exponent).exp().conj() * exponent
