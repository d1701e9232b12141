"""Waveforms as sequences of symbols: 8-bit mu-law, 8-bit linear, 16-bit as two bytes.

Every code has 256 symbols, maps digital silence to symbol 128 (the two-byte code: 128, then 0)
and satisfies encode(decode(c)) == c for each of its symbols. Arithmetic is in float32 on samples
clamped to [-1, 1]; a NaN is refused, because every integer that it could become is a lie.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from mambaaudio import _torchaudio
from mambacore.errors import DataError, UsageError


class Code(Protocol):
    """What every code offers. Samples: float (..., time) in [-1, 1]; symbols: int64."""

    name: str
    symbols: int
    symbols_per_sample: int

    def encode(self, waveform: Tensor) -> Tensor:
        """Samples (..., time) to symbols (..., time x symbols_per_sample)."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Symbols to float32 samples, the inverse of `encode` up to quantisation."""
        ...


def _samples(waveform: Tensor) -> Tensor:
    if not waveform.is_floating_point():
        raise TypeError(
            f"encode wants floating-point samples in [-1, 1], not {waveform.dtype}: "
            "divide integer samples by their full scale (32768 for 16 bits)"
        )
    waveform = waveform.float()
    if torch.isnan(waveform).any():
        position = int(torch.isnan(waveform).flatten().nonzero()[0])
        raise DataError(f"sample {position} is NaN: there is no code for it")
    return waveform.clamp(-1.0, 1.0)


def _symbols(codes: Tensor, name: str) -> Tensor:
    if codes.is_floating_point():
        raise TypeError(f"{name} codes are integers, not {codes.dtype}")
    codes = codes.long()
    if codes.numel() and not (0 <= int(codes.min()) and int(codes.max()) <= 255):
        raise DataError(
            f"{name} codes lie in 0 .. 255; got {int(codes.min())} .. {int(codes.max())}"
        )
    return codes


class MuLaw:
    """8-bit mu-law companding (ITU-T G.711's curve with mu = 255), without G.711's bit layout.

    >>> import torch
    >>> MuLaw().encode(torch.tensor([-1.0, 0.0, 1.0])).tolist()
    [0, 128, 255]
    """

    name = "mulaw8"
    symbols = 256
    symbols_per_sample = 1

    def encode(self, waveform: Tensor) -> Tensor:
        return _torchaudio.functional().mu_law_encoding(_samples(waveform), self.symbols)

    def decode(self, codes: Tensor) -> Tensor:
        return _torchaudio.functional().mu_law_decoding(_symbols(codes, self.name), self.symbols)


class Linear8:
    """8-bit linear: symbol = round(128 x) + 128, full scale positive clipped to 255.

    >>> import torch
    >>> Linear8().encode(torch.tensor([-1.0, 0.0, 0.5])).tolist()
    [0, 128, 192]
    """

    name = "linear8"
    symbols = 256
    symbols_per_sample = 1

    def encode(self, waveform: Tensor) -> Tensor:
        scaled = torch.round(_samples(waveform) * 128).long() + 128
        return scaled.clamp(0, 255)

    def decode(self, codes: Tensor) -> Tensor:
        return (_symbols(codes, self.name).float() - 128) / 128


class TwoBytes:
    """16-bit samples as two symbols each: the coarse byte, then the fine one.

    >>> import torch
    >>> TwoBytes().encode(torch.tensor([0.0, 1.0])).tolist()
    [128, 0, 255, 255]
    """

    name = "pcm16"
    symbols = 256
    symbols_per_sample = 2

    def encode(self, waveform: Tensor) -> Tensor:
        scaled = torch.round(_samples(waveform).double() * 32768).long().clamp(-32768, 32767)
        offset = scaled + 32768
        return torch.stack([offset >> 8, offset & 255], dim=-1).flatten(-2)

    def decode(self, codes: Tensor) -> Tensor:
        codes = _symbols(codes, self.name)
        if codes.shape[-1] % 2:
            raise DataError(
                f"{self.name} codes come in pairs (coarse, fine); got {codes.shape[-1]} of them"
            )
        coarse, fine = codes.unflatten(-1, (-1, 2)).unbind(-1)
        return ((coarse << 8) + fine - 32768).float() / 32768


CODES: dict[str, type[Code]] = {code.name: code for code in (MuLaw, Linear8, TwoBytes)}


def code(name: str) -> Code:
    """The code of that name; UsageError lists the names."""
    if name not in CODES:
        raise UsageError(f"unknown code {name!r}; the codes are {', '.join(sorted(CODES))}")
    return CODES[name]()
