"""Floors: streams equal wholes, known sources cost their entropy, real data the stated figures."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mambaaudio.codes import code
from mambaaudio.floors import (
    Bigram,
    Floor,
    LinearPrediction,
    Unigram,
    bins,
    bits,
    fit_floors,
)
from mambacore.errors import DataError, UsageError


def _codes(wave: np.ndarray, name: str = "mulaw8") -> np.ndarray:
    return code(name).encode(torch.from_numpy(wave.astype(np.float32))).numpy()


def _voice(seconds: float = 0.5, rate: int = 8000) -> np.ndarray:
    rng = np.random.default_rng(0)
    t = np.arange(int(seconds * rate)) / rate
    return 0.3 * np.sin(900 * t) + 0.1 * np.sin(2700 * t) + rng.normal(0, 0.003, len(t))


@pytest.mark.parametrize("name", ["mulaw8", "linear8", "pcm16"])
def test_any_chunks_cost_what_the_whole_costs(name: str) -> None:
    codes = _codes(_voice(), name)
    width = code(name).symbols_per_sample
    floors = [*fit_floors([codes], name, 8000)[:2], LinearPrediction(name, 8, 64, 16, 20)]
    for floor in floors:
        whole = bits(floor, codes)
        assert whole.shape == (len(codes) // width,)
        stream = floor.stream()
        cuts = np.array([0, 1, 7, 8, 9, 64, 1000]) * width
        parts = [stream(part) for part in np.split(codes, cuts)]
        np.testing.assert_array_equal(np.concatenate(parts), whole, err_msg=floor.name)


@pytest.mark.parametrize("name", ["mulaw8", "linear8", "pcm16"])
def test_bins_are_what_the_code_does(name: str) -> None:
    values, edges = bins(name)
    of = code(name)
    low, high = np.maximum(edges[:-1], -1), np.minimum(edges[1:], 1)
    margin = 0.02 * (high - low)
    for inside in (values, low + margin, high - margin):
        symbols = of.encode(torch.from_numpy(inside).float()).numpy()
        index = (
            symbols.reshape(-1, of.symbols_per_sample)
            @ 256 ** np.arange(of.symbols_per_sample)[::-1]
        )
        assert (index == np.arange(len(values))).all()


def test_counts_cost_the_entropy_of_their_source() -> None:
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.ones(256))
    source = rng.choice(256, 400_000, p=share)
    entropy = -(share * np.log2(share)).sum()
    fitted = Unigram.fit([source[:300_000]], "mulaw8")
    assert bits(fitted, source[300_000:]).mean() == pytest.approx(entropy, abs=0.02)
    # A symbol fixed by the one before costs nothing to the bigram and 8 bits to the unigram.
    walk = (np.arange(100_000) * 5) % 256
    assert bits(Bigram.fit([walk], "mulaw8"), walk)[1:].max() < 0.05
    assert bits(Unigram.fit([walk], "mulaw8"), walk).mean() == pytest.approx(8, abs=0.01)


def test_probabilities_of_all_next_symbols_sum_to_one() -> None:
    past = _codes(_voice(0.1))
    for floor in [*fit_floors([past], "mulaw8", 8000)[:2], LinearPrediction(order=8, window=64)]:
        total = sum(2 ** -bits(floor, np.append(past, c))[-1] for c in range(256))
        assert total == pytest.approx(1, abs=1e-6), floor.name


def test_a_predictable_signal_is_cheap_for_linear_prediction_alone() -> None:
    t = np.arange(8000)
    wave = 0.5 * np.sin(0.3 * t) + 0.2 * np.sin(1.1 * t + 1)
    codes = _codes(wave, "pcm16")
    _, bigram, prediction = fit_floors([codes], "pcm16", 8000)
    assert bits(prediction, codes)[2000:].mean() < 4
    assert bits(bigram, codes)[2000:].mean() > 7


def test_bad_arguments() -> None:
    with pytest.raises(DataError, match="no training samples"):
        Unigram.fit([], "mulaw8")
    with pytest.raises(UsageError, match="order is 64"):
        LinearPrediction(order=64, window=64)
    with pytest.raises(UsageError, match="whole samples"):
        bits(LinearPrediction("pcm16"), np.zeros(3, np.int64))


def _digits(shared_data: Path) -> dict[tuple[int, str], np.ndarray]:
    found = {}
    with tarfile.open(shared_data / "audio" / "fsdd_wav.tar.gz") as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.name.endswith(".wav") else None
            if stream is not None:
                name = Path(member.name).stem
                wave, _ = soundfile.read(io.BytesIO(stream.read()), dtype="float32")
                found[int(name.split("_")[2]), name] = _codes(wave)
    return found


@pytest.mark.slow
def test_stated_figures_of_the_digits(shared_data: Path) -> None:
    digits = _digits(shared_data)

    def mean(floor: Floor, codes: list[np.ndarray]) -> float:
        return float(np.concatenate([bits(floor, c) for c in codes]).mean())

    everything = list(digits.values())
    unigram, bigram, prediction = fit_floors(everything, "mulaw8", 8000)
    assert mean(unigram, everything) == pytest.approx(7.19, abs=0.03)
    assert mean(bigram, everything) == pytest.approx(5.45, abs=0.03)
    test = [codes for (take, _), codes in digits.items() if take < 5]
    assert mean(prediction, test) == pytest.approx(4.46, abs=0.03)


@pytest.mark.slow
def test_stated_figures_of_a_piece(shared_data: Path) -> None:
    path = shared_data / "audio" / "piano" / "MAPS_MUS-scn15_12_ENSTDkCl.flac"
    wave, rate = soundfile.read(path, dtype="float32")
    prediction = LinearPrediction.for_rate("mulaw8", rate)
    assert bits(prediction, _codes(wave)).mean() == pytest.approx(2.09, abs=0.03)
