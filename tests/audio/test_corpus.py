"""The corpus file: exact samples, reused, rebuilt when inputs change, bad files named."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mambaaudio.corpus import Corpus, build_corpus
from mambaaudio.sheet import load_samples
from mambacore.errors import DataError, UsageError


def _write(path: Path, samples: np.ndarray, rate: int = 8000) -> np.ndarray:
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return samples


def _noise(samples: int, seed: int, peak: int = 8000, channels: int = 1) -> np.ndarray:
    shape = (samples, channels) if channels > 1 else samples
    return np.random.default_rng(seed).integers(-peak, peak, shape).astype(np.int16)


def _build(folder: Path, **options) -> Corpus:
    lines: list[str] = options.pop("lines", [])
    return build_corpus(load_samples(folder / "in"), folder / "cache", log=lines.append, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path


def test_samples_come_back_exactly_and_from_the_map(folder: Path) -> None:
    waves = [_write(folder / "in" / f"{i}.wav", _noise(3000 + i, i)) for i in range(3)]
    corpus = _build(folder, validation=0)
    assert isinstance(corpus.all_samples.base, np.memmap)
    for recording, wave in zip(corpus.recordings, waves, strict=True):
        assert np.array_equal(corpus.samples(recording), wave)
        assert np.array_equal(corpus.samples(recording, 10, 7), wave[10:17])
        assert recording.peak == np.abs(wave.astype(int)).max()
    assert np.array_equal(pickle.loads(pickle.dumps(corpus)).samples(1), waves[1])
    with pytest.raises(UsageError, match="has 3000"):
        corpus.samples(0, 2999, 2)


def test_other_rates_and_channels(folder: Path) -> None:
    time = np.arange(16000) / 16000
    both = np.stack([np.sin(2 * np.pi * 440 * time), np.zeros(16000)], 1)
    _write(folder / "in" / "a.wav", np.round(both * 16000).astype(np.int16), 16000)
    _write(folder / "in" / "b.wav", _noise(8000, 0))
    _write(folder / "in" / "c.wav", _noise(8000, 1))
    lines: list[str] = []
    corpus = _build(folder, validation=0, lines=lines)
    assert corpus.rate == 8000
    assert any("1 at 16000 Hz" in line for line in lines)
    assert any("mixed to mono" in line for line in lines)
    tone = corpus.samples(0)
    assert abs(len(tone) - 8000) <= 1
    expected = 8000 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    assert np.abs(tone[200:7800] - expected[200:7800]).max() < 80
    assert _build(folder, channel="right", validation=0).recordings[0].peak == 0


def test_each_channel_is_a_recording(folder: Path) -> None:
    both, four = _noise(3000, 0, channels=2), _noise(2000, 1, channels=4)
    _write(folder / "in" / "a.wav", both)
    mono = _write(folder / "in" / "b.wav", _noise(2500, 2))
    _write(folder / "in" / "c.wav", four)
    lines: list[str] = []
    corpus = _build(folder, channel="each", validation=0, lines=lines)
    assert [r.name for r in corpus.recordings] == [
        "a.wav#left", "a.wav#right", "b.wav", *(f"c.wav#{i}" for i in range(1, 5))
    ]  # fmt: skip
    for recording, wave in zip(corpus.recordings, [*both.T, mono, *four.T], strict=True):
        assert np.array_equal(corpus.samples(recording), wave)
    assert any("2 of them have several channels, each of which" in line for line in lines)
    # From the cache, too; and a file with a bad channel leaves none of the others.
    assert _build(folder, channel="each", validation=0).recordings == corpus.recordings
    bad = np.stack([np.zeros(3000), np.full(3000, np.nan)], 1)
    soundfile.write(folder / "in" / "a.wav", bad, 8000, subtype="FLOAT")
    rest = _build(folder, channel="each", validation=0, skip_bad=True)
    assert [name for name, _ in rest.skipped] == [str(folder / "in" / "a.wav")]
    assert np.array_equal(rest.samples(rest.recordings[0]), mono)
    assert np.array_equal(rest.samples(rest.recordings[4]), four[:, 3])
    with pytest.raises(UsageError, match="mix, left, right, each"):
        _build(folder, channel="both")


def test_channels_of_a_file_are_never_on_both_sides(folder: Path) -> None:
    for i in range(12):
        _write(folder / "in" / f"{i}.wav", _noise(3000 + i, i, channels=1 + i % 2))
    for seed in range(5):
        corpus = _build(folder, channel="each", validation=0.3, seed=seed)
        held = {r.path for r in corpus.select("val")}
        assert 3 <= len(held) <= 4
        assert not held & {r.path for r in corpus.select("train")}
    for path in (folder / "in").iterdir():
        if path.name != "1.wav":
            path.unlink()
    # A single file: both its channels end at the same time.
    train, val = (_build(folder, channel="each").select(s) for s in ("train", "val"))
    assert [r.length for r in train] == [r.start for r in val] == [2701, 2701]


def test_gains(folder: Path) -> None:
    for i, peak in enumerate((1000, 4000)):
        wave = _noise(3000, i, peak)
        wave[5] = peak
        _write(folder / "in" / f"{i}.wav", wave)
    none, one, own = (_build(folder, gain=g, validation=0) for g in ("none", "corpus", "file"))
    assert [r.gain for r in none.recordings] == [1, 1]
    lift = 0.98 * 32768 / 4000
    assert [r.gain for r in one.recordings] == pytest.approx([lift, lift])
    assert [r.gain for r in own.recordings] == pytest.approx([4 * lift, lift])
    assert own.gain == pytest.approx(2 * lift)
    assert _build(folder, gain=2.5, validation=0).gain == 2.5
    with pytest.raises(UsageError, match="gain"):
        _build(folder, gain="loud")


def test_a_corpus_is_made_once_and_again_when_a_file_changes(folder: Path) -> None:
    path = folder / "in" / "a.wav"
    _write(path, _noise(3000, 0))
    first: list[str] = []
    data = _build(folder, lines=first).data
    assert any("reading" in line for line in first)
    stamp = data.stat().st_mtime_ns
    os.utime(path)
    again: list[str] = []
    # Other splits and gains need no decoding either.
    assert _build(folder, gain="corpus", validation=0, lines=again).data == data
    assert data.stat().st_mtime_ns == stamp
    assert not any("reading" in line for line in again)
    changed = _write(path, _noise(3000, 1))
    assert np.array_equal(_build(folder, validation=0).samples(0), changed)
    assert len(list((folder / "cache").glob("*.pcm"))) == 1


def test_recordings_are_held_out_whole_or_at_the_end(folder: Path) -> None:
    wave = _write(folder / "in" / "a.wav", _noise(5000, 0))
    corpus = _build(folder)
    train, val = corpus.recordings
    assert (train.split, train.length, val.split, val.start) == ("train", 4500, "val", 4500)
    assert np.array_equal(corpus.samples(val), wave[4500:])
    for i in range(9):
        _write(folder / "in" / f"b{i}.wav", _noise(5000, 1 + i))
    corpus = _build(folder)
    assert [len(corpus.select(s)) for s in ("train", "val", "test")] == [9, 1, 0]
    assert all(r.length == 5000 for r in corpus.recordings)


def test_bad_files_are_named_or_left_out(folder: Path) -> None:
    _write(folder / "in" / "good.wav", _noise(3000, 0))
    (folder / "in" / "empty.wav").write_bytes(b"")
    (folder / "in" / "text.wav").write_text("no sound")
    soundfile.write(folder / "in" / "nan.wav", np.array([0.1, np.nan] * 50), 8000, subtype="FLOAT")
    soundfile.write(folder / "in" / "none.wav", np.zeros(0, np.int16), 8000)
    long = folder / "in" / "cut.flac"
    soundfile.write(long, _noise(200_000, 3), 8000)
    long.write_bytes(long.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"(?s)empty\.wav: the file is empty.*skip_bad"):
        _build(folder)
    assert not list((folder / "cache").glob("*.json"))
    lines: list[str] = []
    corpus = _build(folder, skip_bad=True, lines=lines)
    assert {r.path.name for r in corpus.recordings} == {"good.wav"}
    reasons = {Path(name).name: reason for name, reason in corpus.skipped}
    assert set(reasons) == {"empty.wav", "text.wav", "nan.wav", "none.wav", "cut.flac"}
    assert "sample 1 is not a number" in reasons["nan.wav"]
    assert sum("left out" in line for line in lines) == 5
    # The list is not forgotten when the corpus is opened again, nor is the refusal.
    assert _build(folder, skip_bad=True).skipped == corpus.skipped
    with pytest.raises(DataError, match="cannot be used"):
        _build(folder)


def _race(folder: Path) -> int:
    return int(np.sum(_build(folder, validation=0).all_samples, dtype=np.int64))


def test_two_processes_make_one_corpus(folder: Path) -> None:
    total = sum(
        int(_write(folder / "in" / f"{i}.wav", _noise(9000, i)).sum(dtype=np.int64))
        for i in range(8)
    )
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_race, [folder] * 4, chunksize=1) == [total] * 4
    assert len(list((folder / "cache").glob("*.pcm"))) == 1


def test_equal_recordings_across_splits_are_said(folder: Path) -> None:
    wave = _noise(3000, 0)
    for split in ("train", "test"):
        (folder / "in" / split).mkdir()
        _write(folder / "in" / split / f"{split}.wav", wave)
    lines: list[str] = []
    _build(folder, lines=lines)
    assert any("test.wav = train.wav" in line for line in lines)
