"""All recordings of a sheet as one memory-mapped file of 16-bit samples, with an index.

A corpus is two files in a cache folder: ``corpus-KEY.json`` (what was read) and
``corpus-KEY-CONTENT.pcm`` (int16, mono, at the model's rate, one recording after the other). KEY
stands for the files, the rate and the channel; labels, splits and gains come from the sheet and
the arguments each time, so trying others reads nothing again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mambaaudio.sheet import SampleSheet, Split
from mambaaudio.split import SplitBy, Unit, hold_out
from mambaaudio.waveform import Channels, named
from mambacore.errors import UsageError
from mambacore.inputs import InputFile

GainMode = Literal["none", "file", "corpus"]
Log = Callable[[str], None]
_FULL_SCALE = 32768
# A gain lifts the loudest sample to here.
_PEAK = 0.98


@dataclass(frozen=True)
class Recording:
    """A recording, or the piece of one that is used together.

    path: its file. label_id, speaker_id: numbers, 0 for none. split: its use. offset, length: its
    place in the corpus, in samples. gain: what its samples are multiplied by before they are
    coded. peak: largest absolute sample, of full scale 32768. digest: of all its samples. start:
    where it starts in the file, in samples at the corpus' rate. row: line of the sheet. index:
    place among the corpus' recordings. voice: the channel, where each of a file's is a recording.
    """

    path: Path
    label_id: int
    speaker_id: int
    split: Split
    offset: int
    length: int
    gain: float
    peak: int
    digest: str
    start: int
    row: int
    index: int
    voice: str = ""

    @property
    def name(self) -> str:
        """The file's name, and the channel's: ``a.wav#left``."""
        return named(self.path.name, self.voice)


@dataclass(frozen=True)
class Corpus:
    """Recordings, readable at random. Build it with `build_corpus`; pickles by path.

    rate: in Hz. recordings: in the order of the sheet. labels, speakers: names; number 0 is none,
    so a recording's label is ``labels[label_id - 1]``. gain_mode, gain: how gains were chosen, and
    the one that generated samples are divided by (with "file", the training recordings' geometric
    mean). inputs: files read, with SHA-256. skipped: files left out, each with the reason. data:
    the file of samples.
    """

    rate: int
    recordings: tuple[Recording, ...]
    labels: tuple[str, ...]
    speakers: tuple[str, ...]
    gain_mode: str
    gain: float
    inputs: tuple[InputFile, ...]
    skipped: tuple[tuple[str, str], ...]
    data: Path

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("all_samples", None)
        return state

    @cached_property
    def all_samples(self) -> NDArray[np.int16]:
        """Every sample, memory-mapped and read-only, shape (samples,)."""
        # A plain view: slicing np.memmap itself costs microseconds a time.
        return np.asarray(np.memmap(self.data, dtype=np.int16, mode="r"))

    def samples(
        self, recording: Recording | int, start: int = 0, length: int | None = None
    ) -> NDArray[np.int16]:
        """Samples of a recording as they are in the file, without its gain; a view, not a copy.

        Raises:
            UsageError: the stretch leaves the recording.
        """
        if isinstance(recording, int):
            recording = self.recordings[recording]
        length = recording.length - start if length is None else length
        if start < 0 or length < 0 or start + length > recording.length:
            raise UsageError(
                f"samples {start} to {start + length} were asked of {recording.name}, which "
                f"has {recording.length}"
            )
        begin = recording.offset + start
        return self.all_samples[begin : begin + length]

    def select(self, split: Split) -> tuple[Recording, ...]:
        """The recordings of one split."""
        return tuple(recording for recording in self.recordings if recording.split == split)

    def seconds(self, split: Split) -> float:
        """Duration of one split."""
        return sum(recording.length for recording in self.select(split)) / self.rate


def log_to_stderr(message: str) -> None:
    """The default log: a line on standard error."""
    import sys

    print(message, file=sys.stderr, flush=True)


def build_corpus(
    sheet: SampleSheet,
    cache_dir: str | os.PathLike[str],
    *,
    rate: int | None = None,
    channel: Channels = "mix",
    gain: GainMode | float = "none",
    validation: float = 0.1,
    validation_by: SplitBy = "file",
    seed: int = 0,
    skip_bad: bool = False,
    log: Log = log_to_stderr,
) -> Corpus:
    """Read every recording of a sheet into a corpus, or open the one made before.

    Files are decoded in blocks and, at another rate, resampled as a stream, so hours of sound
    need no memory. 16-bit mono files at the corpus' rate keep every sample as it is. The two
    files are written beside and renamed, under a lock: two processes may build the same corpus,
    and a crash leaves nothing half-written. They are used again when every input has the size
    and time, or else the size and SHA-256, that it had.

    Args:
        sheet: from `load_samples`.
        cache_dir: folder for the two files; made where missing.
        rate: of the corpus in Hz; by default the files' own, the most frequent where they differ.
        channel: what becomes of several channels: "mix" (their mean), "left", "right", or "each":
            every channel is a recording of its own, of the same label, speaker and split.
        gain: "none" leaves the level as it is; "corpus" gives all recordings the one gain that
            lifts the loudest training sample to 0.98 of full scale; "file" does so for each
            recording; a number is that gain for all.
        validation: part of the training recordings to hold out where the sheet has no ``val``
            rows (`mambaaudio.split.hold_out` has the rule), from 0 (none) to below 1.
        validation_by: hold out files or whole speakers.
        seed: of that choice.
        skip_bad: leave out files that cannot be read, and list them in ``skipped``.
        log: called with progress and counts, a line each.

    Raises:
        DataError: a file cannot be read (it is named, with what is wrong with it) and skip_bad
            is off, no file can be read, or the cache folder cannot be written.
        UsageError: an argument out of range.

    Example:
        >>> import tempfile
        >>> from mambaaudio.sheet import load_samples
        >>> from mambaaudio.synth import write_notes
        >>> folder = Path(tempfile.mkdtemp())
        >>> sheet = load_samples(write_notes(folder, rate=8000, takes=1))
        >>> corpus = build_corpus(sheet, folder / "cache", log=lambda line: None)
        >>> corpus.rate, corpus.samples(0, 0, 4).dtype
        (8000, dtype('int16'))
    """
    if channel not in get_args(Channels):
        raise UsageError(f"channel is {channel!r}; accepted are {', '.join(get_args(Channels))}")
    if not 0 <= validation < 1:
        raise UsageError(f"validation is {validation}; give a part from 0 to below 1, as 0.1")
    if validation_by not in get_args(SplitBy):
        raise UsageError(f"validation_by is {validation_by!r}; accepted are file and speaker")
    if isinstance(gain, str) and gain not in get_args(GainMode):
        raise UsageError(f"gain is {gain!r}; accepted are none, file, corpus, or a number")
    if not isinstance(gain, str) and not 0 < gain < float("inf"):
        raise UsageError(f"gain is {gain}; give a number above 0")
    from mambaaudio.corpus_build import open_or_build

    index = open_or_build(
        [sample.path for sample in sheet.samples], Path(cache_dir), rate, channel, skip_bad, log
    )
    recordings: list[Recording] = []
    for sample in sheet.samples:
        recordings += [
            Recording(
                path=sample.path,
                label_id=sheet.label_id(sample.label),
                speaker_id=sheet.speaker_id(sample.speaker),
                split=sample.split or "train",
                offset=entry["offset"],
                length=entry["length"],
                gain=1.0,
                peak=entry["peak"],
                digest=entry["digest"],
                start=0,
                row=sample.row,
                index=-1,
                voice=entry["voice"],
            )
            for entry in index.files.get(str(sample.path), ())
        ]
    if not any(sample.split == "val" for sample in sheet.samples):
        recordings = _held_out(recordings, validation, seed, validation_by)
    recordings, mode, one = _with_gain(recordings, gain)
    corpus = Corpus(
        rate=index.rate,
        recordings=tuple(replace(r, index=i) for i, r in enumerate(recordings)),
        labels=sheet.labels,
        speakers=sheet.speakers,
        gain_mode=mode,
        gain=one,
        inputs=index.inputs,
        skipped=index.skipped,
        data=index.data,
    )
    _log_counts(corpus, log)
    return corpus


def _held_out(
    recordings: Sequence[Recording], fraction: float, seed: int, by: SplitBy
) -> list[Recording]:
    training = [r for r in recordings if r.split == "train"]
    units = [
        Unit(r.digest, r.length, r.label_id, r.speaker_id, str(r.path) if r.voice else "")
        for r in training
    ]
    whole, ends = hold_out(units, fraction, seed, by)
    result: list[Recording] = []
    place = -1
    for recording in recordings:
        if recording.split != "train":
            result.append(recording)
            continue
        place += 1
        keep = ends.get(place, recording.length)
        if place in whole:
            result.append(replace(recording, split="val"))
        elif 0 < keep < recording.length:
            rest = replace(
                recording,
                split="val",
                offset=recording.offset + keep,
                length=recording.length - keep,
                start=keep,
            )
            result += [replace(recording, length=keep), rest]
        else:
            result.append(recording)
    return result


def _with_gain(
    recordings: Sequence[Recording], gain: GainMode | float
) -> tuple[list[Recording], str, float]:
    """Recordings with their gain, how it was chosen, and the one that the model notes."""
    if gain == "none":
        return list(recordings), "none", 1.0
    if not isinstance(gain, str):
        return [replace(r, gain=float(gain)) for r in recordings], "corpus", float(gain)
    heard = [r for r in recordings if r.split == "train" and r.peak] or [
        r for r in recordings if r.peak
    ]
    if gain == "corpus":
        one = _lift(max((r.peak for r in heard), default=0))
        return [replace(r, gain=one) for r in recordings], gain, one
    own = [replace(r, gain=_lift(r.peak)) for r in recordings]
    mean = float(np.exp(np.mean(np.log([_lift(r.peak) for r in heard])))) if heard else 1.0
    return own, gain, mean


def _lift(peak: int) -> float:
    return _PEAK * _FULL_SCALE / peak if peak else 1.0


def _log_counts(corpus: Corpus, log: Log) -> None:
    parts = []
    for split in ("train", "val", "test"):
        recordings = corpus.select(split)
        if recordings:
            parts.append(f"{split} {len(recordings):,}, {corpus.seconds(split) / 60:.1f} min")
    names = [f"{len(corpus.labels)} labels"] if corpus.labels else []
    names += [f"{len(corpus.speakers)} speakers"] if corpus.speakers else []
    log("; ".join([f"recordings at {corpus.rate} Hz: " + ", ".join(parts), *names]))
    trained = {r.digest: r.name for r in corpus.select("train")}
    twice = [
        r for r in corpus.recordings if r.split != "train" and r.start == 0 and r.digest in trained
    ]
    if twice:
        first = twice[0]
        log(
            f"{len(twice)} val or test recordings equal a training recording sample for sample, "
            f"the first {first.name} = {trained[first.digest]}: they measure memory"
        )
