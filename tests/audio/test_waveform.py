"""Sound files in and out: exactness, streams, errors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaaudio.waveform import probe, read, stream, voices
from mambaaudio.writer import WaveformWriter, to_int16
from mambacore.errors import DataError, UsageError


def _noise(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.9, 0.9, frames).astype(np.float32)


def _sine(frames: int, rate: int, hertz: float) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(frames) / rate)).astype(np.float32)


def test_sixteen_bits_round_trip_exactly(tmp_path: Path) -> None:
    for suffix in (".wav", ".flac"):
        path = tmp_path / f"a{suffix}"
        wave = (np.arange(-32768, 32768) / 32768).astype(np.float32)
        with WaveformWriter(path, 8000) as writer:
            writer.write(wave)
        assert (writer.clipped, writer.frames) == (0, 65536)
        assert np.array_equal(read(path), wave)
        assert (probe(path).rate, probe(path).subtype) == (8000, "PCM_16")


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, 9000), max_size=5), block=st.integers(100, 5000))
def test_blocks_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], block: int
) -> None:
    """Written and read in any blocks, resampled both ways: the same as in one piece."""
    folder = tmp_path_factory.mktemp("blocks")
    wave = _noise(9000)
    with WaveformWriter(folder / "one.wav", 8000, output_rate=11025) as writer:
        writer.write(wave)
    with WaveformWriter(folder / "many.wav", 8000, output_rate=11025) as writer:
        for piece in np.split(wave, sorted(cuts)):
            writer.write(piece)
    one, many = read(folder / "one.wav"), read(folder / "many.wav")
    assert abs(len(one) - 9000 * 11025 / 8000) <= 1
    assert np.abs(one - many).max() <= 1.5 / 32768
    whole = read(folder / "one.wav", rate=16000)
    blocks = np.concatenate(list(stream(folder / "one.wav", rate=16000, block_frames=block)))
    assert np.abs(whole - blocks).max() < 1e-6


def test_resampling_keeps_a_tone(tmp_path: Path) -> None:
    with WaveformWriter(tmp_path / "a.wav", 44100) as writer:
        writer.write(_sine(44100, 44100, 440.0))
    low = read(tmp_path / "a.wav", rate=8000)
    expected = _sine(8000, 8000, 440.0)
    assert abs(len(low) - 8000) <= 1
    assert np.abs(low[500:7500] - expected[500:7500]).max() < 1e-3


def test_channels(tmp_path: Path) -> None:
    left, right = _noise(1000, 1), _noise(1000, 2)
    soundfile.write(tmp_path / "s.wav", np.stack([left, right], 1), 8000, subtype="FLOAT")
    assert np.array_equal(read(tmp_path / "s.wav", channel="left"), left)
    assert np.array_equal(read(tmp_path / "s.wav", channel="right"), right)
    assert np.allclose(read(tmp_path / "s.wav"), (left + right) / 2, atol=1e-7)
    for (_, place), wave in zip(voices(2, "each"), (left, right), strict=True):
        assert np.array_equal(read(tmp_path / "s.wav", channel=place), wave)


def test_part_of_a_file(tmp_path: Path) -> None:
    wave = _noise(5000)
    soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
    assert np.array_equal(read(tmp_path / "a.wav", start=1234, frames=700), wave[1234:1934])
    assert len(read(tmp_path / "a.wav", start=5000)) == 0
    with pytest.raises(UsageError, match="5000 frames"):
        read(tmp_path / "a.wav", start=5001)


def test_clipping_is_counted_and_nan_refused(tmp_path: Path) -> None:
    whole, clipped = to_int16(np.array([1.5, 1.0, -1.0, -2.0, 0.25]))
    assert whole.tolist() == [32767, 32767, -32768, -32768, 8192]
    assert clipped == 3
    with pytest.raises(DataError, match="sample 1 is NaN"):
        to_int16(np.array([0.0, np.nan]))


def test_a_failure_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with WaveformWriter(path, 8000) as writer:
        writer.write(_noise(100))
    before = path.read_bytes()
    with pytest.raises(DataError), WaveformWriter(path, 8000) as writer:
        writer.write(_noise(50))
        writer.write(np.array([np.nan], np.float32))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_stdout_is_a_wav_stream(tmp_path: Path) -> None:
    pipe = io.BytesIO()
    wave = (np.arange(-500, 500) / 32768).astype(np.float32)
    with WaveformWriter("-", 16000, stdout=pipe) as writer:
        writer.write(wave)
    path = tmp_path / "a.wav"
    path.write_bytes(pipe.getvalue())
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 16000
    assert np.array_equal(samples[:1000], wave)


def test_above_four_gib_is_rf64(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with WaveformWriter(path, 16000, expected_frames=2**31) as writer:
        writer.write(_noise(10))
    assert path.read_bytes()[:4] == b"RF64"
    assert len(read(path)) == 10


def test_ogg_is_written_in_blocks(tmp_path: Path) -> None:
    with WaveformWriter(tmp_path / "a.ogg", 16000) as writer:
        writer.write(_sine(16000 * 60, 16000, 220.0))
    info = probe(tmp_path / "a.ogg")
    assert (info.format, info.frames) == ("OGG", 16000 * 60)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.wav", None, "no such"),
        ("empty.wav", b"", "empty"),
        ("text.wav", b"hello, this is not sound", "libsndfile"),
    ],
)
def test_bad_files_are_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        read(tmp_path / name)


def test_bad_output_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"suffix.*\.wav"):
        WaveformWriter(tmp_path / "a.xyz", 8000)
    (tmp_path / "no").touch()
    with pytest.raises(DataError, match="cannot be written"):
        WaveformWriter(tmp_path / "no" / "a.wav", 8000)
    with pytest.raises(UsageError, match="FLAC holds"):
        WaveformWriter(tmp_path / "a.flac", 8000, subtype="FLOAT")
    assert [path.name for path in tmp_path.iterdir()] == ["no"]


def test_a_failure_at_the_end_leaves_the_old_file_too(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")
    with pytest.raises(DataError, match="NaN"), WaveformWriter(path, 8000) as writer:
        writer._resampler = soxr.ResampleStream(8000, 16000, 1, dtype="float32")
        writer._resampler.resample_chunk(np.full(9, np.nan, np.float32))
    with pytest.raises(soundfile.LibsndfileError):
        WaveformWriter(path, 0)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
