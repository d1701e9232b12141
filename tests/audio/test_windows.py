"""Windows and clips: what they hold, how they are drawn, what counts."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaaudio.codes import CODES, code
from mambaaudio.corpus import Corpus, build_corpus
from mambaaudio.rows import Coder, Layout, Piece, RowReader
from mambaaudio.sheet import load_samples
from mambaaudio.windows import TrainingWindows, tile_windows
from mambacore.errors import DataError, UsageError

LENGTHS = {"a0": 900, "a1": 1500, "a2": 2100, "b0": 1000, "c0": 5000}


def _corpus(folder: Path, gain: float = 1.0) -> Corpus:
    """Three labels with 3, 1 and 1 clips, each with samples of its own range."""
    (folder / "in").mkdir(exist_ok=True)
    rows = ["path\tlabel\tspeaker"]
    for i, (name, length) in enumerate(LENGTHS.items()):
        wave = (np.arange(length) % 1000 + 3000 * i).astype(np.int16)
        soundfile.write(folder / "in" / f"{name}.wav", wave, 8000, subtype="PCM_16")
        rows.append(f"{name}.wav\t{name[0]}\ts{name[1]}")
    (folder / "in" / "sheet.tsv").write_text("\n".join(rows) + "\n")
    sheet = load_samples(folder / "in" / "sheet.tsv")
    return build_corpus(sheet, folder / "c", validation=0, gain=gain, log=lambda line: None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return _corpus(tmp_path_factory.mktemp("windows"))


@pytest.mark.parametrize("name", sorted(CODES))
def test_the_table_is_the_code(corpus: Corpus, tmp_path: Path, name: str) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, 5000).astype(np.int16)
    samples[:3] = -32768, 0, 32767
    waveform = torch.from_numpy(samples.astype(np.float32) / 32768 * np.float32(1.5))
    expected = code(name).encode(waveform).numpy()
    assert np.array_equal(Coder(corpus, Layout(name)).encode(samples, 1.5), expected)


@pytest.mark.parametrize("name", ["mulaw8", "pcm16"])
def test_a_clip_is_followed_by_silence_and_the_end(corpus: Corpus, name: str) -> None:
    layout = Layout.choose(corpus, 2048, code=name, clips=True)
    tiles = tile_windows(corpus, "train", 8192, layout)
    batch, each, silence = tiles.batch(np.arange(5)), layout.per_sample, 800
    assert batch.codes.dtype == np.int16
    zero = code(name).encode(torch.zeros(1)).tolist()
    for row, length in enumerate(LENGTHS.values()):
        real, total = length * each, (length + silence) * each
        samples = corpus.samples(row).astype(np.float32) / 32768
        expected = code(name).encode(torch.from_numpy(samples)).numpy()
        assert np.array_equal(batch.codes[row, :real], expected)
        assert batch.codes[row, real:total].tolist() == zero * silence
        assert batch.codes[row, total] == layout.end == 256
        assert batch.mask[row].sum() == total + 1
        assert batch.mask[row, : total + 1].all()
        assert batch.counted[row].sum() == real
        assert batch.counted[row, :real].all()
    assert batch.label.tolist() == [1, 1, 1, 2, 3]
    assert batch.speaker.tolist() == [1, 2, 3, 1, 1]


def test_tiles_cover_a_clip_to_its_end_event(corpus: Corpus) -> None:
    layout = Layout.choose(corpus, 256, clips=True)
    tiles = tile_windows(corpus, "train", 256, layout)
    mine = np.flatnonzero(tiles.record == 4)
    parts = [tiles.batch([place]) for place in mine]
    whole = tile_windows(corpus, "train", 8192, layout).batch([4])
    assert np.array_equal(np.concatenate([p.codes[0] for p in parts]), whole.codes[0])
    assert np.array_equal(np.concatenate([p.counted[0] for p in parts]), whole.counted[0])


def test_tiles_of_long_recordings_do_not_overlap_or_pad(corpus: Corpus) -> None:
    tiles = tile_windows(corpus, "train", 1000, Layout())
    assert Counter(tiles.record.tolist()) == {0: 1, 1: 1, 2: 2, 3: 1, 4: 5}
    assert tiles.batch([1, 2, 3]).mask.all()
    assert tiles.batch([0]).codes.shape == (1, 900)
    assert len(tiles.spread(4)) == 4
    packed = tiles.packed(3000)
    assert sorted(np.concatenate(packed).tolist()) == list(range(len(tiles)))
    assert all(len(p) * tiles.symbols[p].max() <= 3000 for p in packed)
    with pytest.raises(DataError, match="no test recordings"):
        tile_windows(corpus, "test", 1000, Layout())


@settings(max_examples=15, deadline=None)
@given(
    step=st.integers(0, 50),
    world=st.integers(1, 3),
    batch=st.integers(1, 5),
    window=st.sampled_from([64, 500, 2048, 8192]),
    clips=st.booleans(),
    name=st.sampled_from(["mulaw8", "pcm16"]),
)
def test_rows_are_stretches_of_one_recording(
    corpus: Corpus, step: int, world: int, batch: int, window: int, clips: bool, name: str
) -> None:
    """A pure function of its arguments, also in another process; every row from one file."""
    layout = Layout.choose(corpus, window, code=name, clips=clips)
    windows = TrainingWindows(corpus, layout, seed=3)
    other = pickle.loads(pickle.dumps(windows))
    other.batch(step + 9, 0, world, batch, window)
    whole = tile_windows(corpus, "train", 1 << 14, layout).batch(slice(None))
    decode = code(name).decode
    for rank in range(world):
        rows = windows.batch(step, rank, world, batch, window)
        again = other.batch(step, rank, world, batch, window)
        assert all(np.array_equal(a, b) for a, b in zip(rows, again, strict=True))
        limit = window * layout.per_sample
        assert rows.mask.sum(1).max() <= limit + clips
        assert rows.codes.shape[1] <= max(limit, rows.mask.sum(1).max())
        for codes, mask, counted in zip(rows.codes, rows.mask, rows.counted, strict=True):
            length = int(mask.sum())
            assert mask[:length].all()
            row = bytes(codes[:length].astype(np.int16).tobytes())
            assert any(row in w[m].astype(np.int16).tobytes() for w, m in zip(
                whole.codes, whole.mask, strict=True))  # fmt: skip
            assert not (counted & ~mask).any()
            real = decode(torch.from_numpy(codes[counted].astype(np.int64)))
            assert clips or len(real) * layout.per_sample == length


def test_ranks_share_the_global_batch(corpus: Corpus) -> None:
    windows = TrainingWindows(corpus, Layout(), seed=0)
    one = windows.batch(7, 0, 1, 6, 256).codes
    two = [windows.batch(7, rank, 2, 3, 256).codes for rank in (0, 1)]
    assert np.array_equal(one, np.concatenate(two))


def test_labels_are_balanced_and_padding_is_rare(corpus: Corpus) -> None:
    layout = Layout.choose(corpus, 8192, clips=True)
    windows = TrainingWindows(corpus, layout, seed=0)
    labels: Counter[int] = Counter()
    filled = sizes = 0
    for step in range(80):
        batch = windows.batch(step, 0, 1, 4, 8192)
        labels.update(batch.label.tolist())
        filled += batch.mask.sum()
        sizes += batch.mask.size
    # Label a has three clips, b and c one each: drawn alike all the same.
    shares = np.array([labels[i] for i in (1, 2, 3)]) / labels.total()
    assert np.abs(shares - 1 / 3).max() < 0.06
    assert filled / sizes > 0.85
    assert sizes / 80 == pytest.approx(4 * 8192, rel=0.2)


def test_a_width_has_one_shape_and_its_clips_their_share(corpus: Corpus) -> None:
    layout = Layout.choose(corpus, 8192, clips=True)
    windows = TrainingWindows(corpus, layout, seed=0)
    shapes, heard = set(), Counter()
    for step in range(200):
        batch = windows.batch(step, 1, 2, 4, 8192)
        shapes.add(batch.codes.shape)
        heard.update(batch.counted.sum(1).tolist())
    assert len(shapes) == len({width for _, width in shapes}) <= 5
    # Of a label with three clips each is a ninth, the other labels' clips are a third.
    expected = {900: 1 / 9, 1500: 1 / 9, 2100: 1 / 9, 1000: 1 / 3, 5000: 1 / 3}
    shares = {length: count / heard.total() for length, count in heard.items()}
    assert shares == pytest.approx(expected, abs=0.04)


def test_stretches_reach_every_sample_and_the_beginning(corpus: Corpus) -> None:
    windows = TrainingWindows(corpus, Layout("pcm16"), seed=1)
    heard: Counter[int] = Counter()
    for step in range(150):
        for row in windows.batch(step, 0, 1, 8, 512).codes.astype(int):
            samples = (row[::2] << 8) + row[1::2] - 32768
            if samples[0] >= 12000:  # the recording c0
                heard[(int(samples[0]) - 12000) % 1000] += 1
    assert heard.total() == pytest.approx(150 * 8 / 3, rel=0.2)
    # Starts before the first sample are moved there: about one in eleven.
    assert heard[0] > 10
    assert len(heard) > 100


def test_clips_are_recognised(corpus: Corpus) -> None:
    assert Layout.choose(corpus, 8192).clips
    assert not Layout.choose(corpus, 1024).clips
    assert not Layout.choose(corpus, 8192, clips=False).clips
    with pytest.raises(UsageError, match="window is 3"):
        TrainingWindows(corpus, Layout(), seed=0).batch(0, 0, 1, 1, 3)
    with pytest.raises(UsageError, match="rank 1 of 1"):
        TrainingWindows(corpus, Layout(), seed=0).batch(0, 1, 1, 1, 64)


def _pitches(folder: Path, speed: float, clips: bool) -> tuple[list[float], list[int]]:
    """Frequency (Hz) and real samples of training rows from recordings of a sine of 500 Hz."""
    (folder / "in").mkdir()
    rows = ["path\tlabel"]
    for name in "ab":
        wave = 0.5 * np.sin(np.arange(4000) * 2 * np.pi * 500 / 8000)
        soundfile.write(folder / "in" / f"{name}.wav", wave, 8000, subtype="PCM_16")
        rows.append(f"{name}.wav\t{name}")
    (folder / "in" / "sheet.tsv").write_text("\n".join(rows) + "\n")
    sheet = load_samples(folder / "in" / "sheet.tsv")
    corpus = build_corpus(sheet, folder / "c", validation=0, log=lambda line: None)
    window = 8192 if clips else 1024
    layout = Layout.choose(corpus, window, clips=clips)
    windows = TrainingWindows(corpus, layout, seed=3, speed=speed)
    pitches, lengths = [], []
    for step in range(12):
        batch = windows.batch(step, 0, 1, 8, window)
        for row in range(len(batch.codes)):
            real = int(batch.counted[row].sum())
            wave = code("mulaw8").decode(torch.from_numpy(batch.codes[row, :real])).numpy()
            crossings = np.flatnonzero((wave[:-1] < 0) & (wave[1:] >= 0))
            pitches.append(8000 * (len(crossings) - 1) / (crossings[-1] - crossings[0]))
            lengths.append(real)
            if clips:  # the tail is what it was
                assert batch.codes[row, batch.mask[row].sum() - 1] == layout.end
                assert batch.mask[row].sum() - real == layout.silence + 1
    return pitches, lengths


@pytest.mark.parametrize("clips", [True, False])
def test_half_of_the_rows_are_played_at_another_speed(tmp_path: Path, clips: bool) -> None:
    pitches, lengths = _pitches(tmp_path, 0.2, clips)
    found = np.array(pitches)
    same = np.abs(found - 500) < 0.5
    assert 0.3 < same.mean() < 0.7
    assert 400 < found.min() < 430
    assert 570 < found.max() < 605
    if clips:  # a clip that is played faster is shorter
        assert np.allclose(np.array(lengths), 4000 * 500 / found, atol=12)
    else:
        assert set(lengths) == {1024}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 120), st.sampled_from([0.5, 0.8, 1.25, 2.0]), st.integers(1, 600))
def test_a_stretch_at_a_speed_is_that_of_the_whole(
    corpus: Corpus, place: int, speed: float, symbols: int
) -> None:
    """Wherever a row begins: its edges sound as they do within the recording."""
    reader = RowReader(corpus, Layout("linear8"))
    recording = corpus.recordings[4]
    start = 20 * place  # falls on a sample at all of these speeds
    length = Piece(recording, 0, 0, speed).length
    symbols = min(symbols, length - start)
    whole = reader.rows([Piece(recording, 0, length, speed)], length).codes[0]
    part = reader.rows([Piece(recording, start, symbols, speed)], symbols).codes[0]
    difference = part.astype(int) - whole[start : start + symbols].astype(int)
    assert np.abs(difference).max() <= 1
