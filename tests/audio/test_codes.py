"""Properties of the sample codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mambaaudio.codes import CODES, code
from mambacore.errors import DataError, UsageError

NAMES = sorted(CODES)
STEP = {"mulaw8": 0.022, "linear8": 1 / 128, "pcm16": 1 / 32768}


@pytest.mark.parametrize("name", NAMES)
def test_every_symbol_survives(name: str) -> None:
    coder = code(name)
    if coder.symbols_per_sample == 1:
        symbols = torch.arange(256)
    else:
        symbols = torch.cartesian_prod(torch.arange(256), torch.arange(256)).flatten()
    assert torch.equal(coder.encode(coder.decode(symbols)), symbols)


@pytest.mark.parametrize("name", NAMES)
def test_silence_is_128(name: str) -> None:
    symbols = code(name).encode(torch.zeros(3))
    assert symbols[0] == 128
    assert abs(float(code(name).decode(symbols)[0])) < 1e-3


@pytest.mark.parametrize("name", NAMES)
@given(values=st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=50))
def test_decoding_is_near(name: str, values: list[float]) -> None:
    wave = torch.tensor(values)
    symbols = code(name).encode(wave)
    assert symbols.dtype == torch.int64
    assert 0 <= int(symbols.min())
    assert int(symbols.max()) <= 255
    error = (code(name).decode(symbols) - wave.clamp(-1, 1)).abs().max()
    assert error <= STEP[name] * 1.001


@pytest.mark.parametrize("name", NAMES)
def test_louder_is_never_a_lower_code(name: str) -> None:
    wave = torch.linspace(-1, 1, 4001)
    assert (code(name).decode(code(name).encode(wave)).diff() >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_bad_samples_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="sample 1 is NaN"):
        code(name).encode(torch.tensor([0.0, float("nan")]))
    with pytest.raises(TypeError, match="32768"):
        code(name).encode(torch.zeros(3, dtype=torch.int16))
    with pytest.raises(DataError, match="0 .. 255"):
        code(name).decode(torch.tensor([0, 256]))


def test_unknown_code_lists_the_known() -> None:
    with pytest.raises(UsageError, match=", ".join(NAMES)):
        code("mp3")
