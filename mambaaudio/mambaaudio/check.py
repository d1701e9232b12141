"""Look at recordings before training on them: clipping, DC, silence, true bit depth, duplicates."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import soundfile

from mambaaudio.waveform import BLOCK_FRAMES, named, probe, voices
from mambacore.errors import DataError

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".au", ".w64", ".rf64")
# Distinct values seen above this many need more than 8 bits to tell apart.
_EIGHT_BITS = 256
_CLIP_RUN = 2


@dataclass(frozen=True)
class FileCheck:
    """One row: what a recording is, and what is odd about it."""

    path: str
    seconds: float
    rate: int
    channels: int
    subtype: str
    peak: float
    rms_db: float
    dc: float
    clipped: int
    silent_share: float
    longest_silence: float
    bits: int
    digest: str
    notes: str = ""

    @staticmethod
    def header() -> str:
        return "\t".join(field.name for field in fields(FileCheck))

    def row(self) -> str:
        cells = []
        for field in fields(self):
            value = getattr(self, field.name)
            cells.append(f"{value:.6g}" if isinstance(value, float) else str(value))
        return "\t".join(cells)


def find(folder: str | Path) -> list[Path]:
    """Every sound file below a folder, sorted; DataError when there is none."""
    root = Path(folder)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DataError(f"{root}: no such file or folder")
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise DataError(f"{root}: no sound files below it (looked for {', '.join(SUFFIXES)})")
    return found


def _longest_run(flags: np.ndarray, carried: int) -> tuple[int, int]:
    """Longest run of True, counting `carried` before the block; and the run at its end."""
    if flags.all():
        return carried + len(flags), carried + len(flags)
    edges = np.flatnonzero(~flags)
    runs = np.diff(edges) - 1
    first, last = carried + int(edges[0]), len(flags) - 1 - int(edges[-1])
    return max(first, last, int(runs.max(initial=0))), last


def _true_bits(values: set[int], shift: int, coded_bits: int) -> int:
    """Bits that the samples really use: trailing zero bits do not count, nor a coarse alphabet."""
    if not values:
        return 0
    if len(values) <= _EIGHT_BITS:
        return max(1, int(np.ceil(np.log2(max(len(values), 2)))))
    return coded_bits - shift


def check_file(path: str | Path, channel: int | None = None) -> FileCheck:
    """Measure one recording in constant memory: all its channels, or the one of a number, from 0.

    `clipped` counts samples at full scale in runs of two or more; `dc` is the mean, `peak` and
    `dc` relative to full scale; `silent_share` the share of samples that are exactly zero;
    `longest_silence` in seconds; `bits` the resolution that the samples use, which an 8-bit
    recording saved as 16 bits gives away; `digest` tells equal audio whatever the container.
    """
    info = probe(path)
    lossy = info.subtype in {"VORBIS", "MPEG_LAYER_III", "OPUS"}
    digest, distinct = hashlib.sha256(), set[int]()
    total = squares = 0.0
    samples = clipped = zeros = silence = longest = bits_used = 0
    peak = 0
    with soundfile.SoundFile(path) as file:
        while len(block := file.read(BLOCK_FRAMES, dtype="int32", always_2d=True)):
            block = block if channel is None else block[:, channel : channel + 1]
            digest.update(np.ascontiguousarray(block).tobytes())
            scaled = block.astype(np.float64) / 2**31
            total += float(scaled.sum())
            squares += float(np.square(scaled).sum())
            peak = max(peak, int(np.abs(block.astype(np.int64)).max()))
            samples += block.size
            bits_used |= int(np.bitwise_or.reduce(block, axis=None)) & 0xFFFFFFFF
            if len(distinct) <= _EIGHT_BITS:
                distinct.update(np.unique(block).tolist())
            full = (block >= 0x7FFF0000) | (block == -(2**31))
            for flags in full.T:
                runs = np.diff(np.flatnonzero(np.diff(np.r_[False, flags, False])))[::2]
                clipped += int(runs[runs >= _CLIP_RUN].sum())
            quiet = (block == 0).all(axis=1)
            zeros += int(quiet.sum())
            run, silence = _longest_run(quiet, silence)
            longest = max(longest, run)
    shift = 0 if bits_used == 0 else (bits_used & -bits_used).bit_length() - 1
    bits = 0 if lossy else _true_bits(distinct, shift, 32)
    rms = np.sqrt(squares / samples) if samples else 0.0
    heard = info.channels if channel is None else 1
    frames = max(samples // heard, 1)
    check = FileCheck(
        path=str(path),
        seconds=info.seconds,
        rate=info.rate,
        channels=heard,
        subtype=info.subtype,
        peak=peak / 2**31,
        rms_db=float(20 * np.log10(rms)) if rms > 0 else float("-inf"),
        dc=total / samples if samples else 0.0,
        clipped=clipped,
        silent_share=zeros / frames,
        longest_silence=longest / info.rate,
        bits=bits,
        digest=digest.hexdigest()[:16],
    )
    return _with_notes(check)


def _with_notes(check: FileCheck) -> FileCheck:
    notes = []
    if check.seconds == 0:
        notes.append("no samples")
    if check.clipped:
        notes.append(f"{check.clipped} clipped samples")
    if abs(check.dc) > 0.01:
        notes.append(f"DC offset {check.dc:+.3f}")
    if check.silent_share == 1:
        notes.append("digital silence throughout")
    elif check.longest_silence > 1:
        notes.append(f"{check.longest_silence:.1f} s of digital silence")
    coded = {"PCM_16": 16, "PCM_24": 24, "PCM_32": 32}.get(check.subtype, 0)
    if coded and 0 < check.bits <= coded - 4:
        notes.append(f"{check.bits} bits of resolution in {check.subtype}")
    return replace(check, notes="; ".join(notes))


def _by_channel(path: Path) -> Iterator[FileCheck]:
    for voice, place in voices(probe(path).channels, "each"):
        if isinstance(place, int):
            yield replace(check_file(path, place), path=named(str(path), voice))
        else:
            yield check_file(path)


def check_folder(paths: Iterable[Path], *, each: bool = False) -> Iterator[FileCheck]:
    """`check_file` of each, with what only shows among several: mixed rates, equal recordings.

    each: every channel is a recording of its own, named as ``a.wav#left``.
    """
    checks = [
        check for path in paths for check in (_by_channel(path) if each else [check_file(path)])
    ]
    rates = Counter(check.rate for check in checks)
    usual = rates.most_common(1)[0][0] if rates else 0
    first: dict[str, str] = {}
    for check in checks:
        notes = [check.notes] if check.notes else []
        if check.rate != usual:
            notes.append(f"{check.rate} Hz where most are {usual} Hz")
        if check.digest in first and check.seconds > 0:
            notes.append(f"same samples as {first[check.digest]}")
        first.setdefault(check.digest, check.path)
        yield replace(check, notes="; ".join(notes))
