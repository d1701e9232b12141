"""Making a corpus file: decode, resample, write, name, lock."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from mambaaudio.corpus import Log
from mambaaudio.waveform import AudioInfo, Channel, Channels, probe, stream, voices
from mambacore.cache import atomic_path, atomic_write, lock
from mambacore.errors import DataError, UsageError
from mambacore.inputs import InputFile, file_sha256, input_file

_VERSION = 2
_NAMED = 5


class FileEntry(TypedDict):
    """One recording of a file: the channel where it is one of several (else empty), place in the
    corpus, in samples; largest absolute sample; digest."""

    voice: str
    offset: int
    length: int
    peak: int
    digest: str


@dataclass(frozen=True)
class CorpusIndex:
    """What was read: recordings by path, inputs with checksums, files left out, the file of
    samples."""

    rate: int
    files: dict[str, list[FileEntry]]
    inputs: tuple[InputFile, ...]
    skipped: tuple[tuple[str, str], ...]
    data: Path


def open_or_build(
    paths: Sequence[Path],
    folder: Path,
    rate: int | None,
    channel: Channels,
    skip_bad: bool,
    log: Log,
) -> CorpusIndex:
    """The corpus of some files, from the cache if it is current; see `build_corpus`."""
    if rate is not None and rate < 1:
        raise UsageError(f"rate is {rate} Hz; it must be positive")
    bad: dict[Path, str] = {}
    headers = _headers(paths, bad)
    if rate is None:
        rate = _usual_rate(headers, bad, log)
    text = json.dumps([_VERSION, [str(path) for path in paths], rate, channel])
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    with lock(folder / f"corpus-{key}.lock", log=log):
        path = folder / f"corpus-{key}.json"
        index = _current(path, log)
        if index is None or (index.skipped and not skip_bad):
            if skip_bad is False:
                _refuse(bad)
            index = _build(paths, path, rate, channel, skip_bad, bad, headers, log)
    for name, reason in index.skipped:
        log(f"left out {name}: {reason}")
    return index


def _headers(paths: Sequence[Path], bad: dict[Path, str]) -> dict[Path, AudioInfo]:
    headers = {}
    for path in paths:
        try:
            headers[path] = probe(path)
        except DataError as error:
            bad[path] = _reason(error, path)
    return headers


def _reason(error: DataError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _usual_rate(headers: dict[Path, AudioInfo], bad: dict[Path, str], log: Log) -> int:
    if not headers:
        _refuse(bad)
    rates = Counter(info.rate for info in headers.values())
    usual = rates.most_common(1)[0][0]
    if len(rates) > 1:
        others = ", ".join(f"{count} at {rate} Hz" for rate, count in rates.most_common()[1:])
        log(f"most files are at {usual} Hz; these are resampled to it: {others}")
    return usual


def _refuse(bad: dict[Path, str]) -> None:
    """Raise the error that names the bad files, if there are any."""
    if not bad:
        return
    named = "; ".join(f"{path}: {reason}" for path, reason in list(bad.items())[:_NAMED])
    more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    count = "a file" if len(bad) == 1 else f"{len(bad)} files"
    raise DataError(
        f"{count} cannot be used: {named}{more}. Mend or remove it, or leave such files out with "
        "skip_bad (--data.skip_bad true)"
    )


def _current(path: Path, log: Log) -> CorpusIndex | None:
    """The index at `path`, if its inputs are still what they were."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        index = CorpusIndex(
            rate=content["rate"],
            files=content["files"],
            inputs=tuple(content["inputs"]),
            skipped=tuple((name, reason) for name, reason in content["skipped"]),
            data=path.parent / content["data"],
        )
        entries = [entry for file in index.files.values() for entry in file]
        samples = max((entry["offset"] + entry["length"] for entry in entries), default=0)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not index.data.is_file() or index.data.stat().st_size < 2 * samples:
        return None
    for entry in index.inputs:
        file = Path(entry["path"])
        status = file.stat() if file.is_file() else None
        if status is None or status.st_size != entry["bytes"]:
            return None
        if status.st_mtime_ns != entry["mtime_ns"] and file_sha256(file) != entry["sha256"]:
            log(f"{file} has changed since it was read: reading the recordings again")
            return None
    return index


def _build(
    paths: Sequence[Path],
    path: Path,
    rate: int,
    channel: Channels,
    skip_bad: bool,
    bad: dict[Path, str],
    headers: dict[Path, AudioInfo],
    log: Log,
) -> CorpusIndex:
    log(f"reading {len(paths):,} recordings")
    several = sum(info.channels > 1 for info in headers.values())
    if several:
        what = {"mix": "which are mixed to mono", "each": "each of which becomes a recording"}
        became = what.get(channel, f"of which the {channel} one is read")
        log(f"{several:,} of them have several channels, {became}")
    inputs = tuple(input_file(file) for file in paths if file.is_file())
    content = hashlib.sha256("".join(entry["sha256"] for entry in inputs).encode()).hexdigest()
    # Named by the inputs' content: an index never meets the data of another version.
    data = path.parent / f"{path.stem}-{content[:16]}.pcm"
    files: dict[str, list[FileEntry]] = {}
    with atomic_path(data) as beside, open(beside, "wb") as out:
        offset = 0
        for file in paths:
            if file in bad:
                continue
            begin, entries = offset, []
            try:
                for voice, one in voices(headers[file].channels, channel):
                    entries.append({"voice": voice, **_decode(file, rate, one, offset, out)})
                    offset += entries[-1]["length"]
            except DataError as error:
                bad[file] = _reason(error, file)
                offset = begin
                out.seek(2 * offset)
                continue
            files[str(file)] = entries
        out.truncate(2 * offset)
        if not skip_bad or not files:
            _refuse(bad)
    skipped = tuple((str(file), reason) for file, reason in bad.items())
    index = CorpusIndex(rate, files, inputs, skipped, data)
    with atomic_write(path, "w") as file:
        content_of = {"rate": rate, "files": files, "inputs": inputs, "skipped": skipped}
        json.dump({**content_of, "data": data.name}, file)
    for old in path.parent.glob(f"{path.stem}-*.pcm"):
        if old != data:
            old.unlink(missing_ok=True)
    return index


def _decode(
    file: Path, rate: int, channel: Channel | int, offset: int, out: IO[bytes]
) -> dict[str, Any]:
    """Append a channel's samples; nothing of the file is kept in memory."""
    digest, length, peak = hashlib.sha256(), 0, 0
    for block in stream(file, rate=rate, channel=channel):
        samples = _to_int16(block, file, length)
        peak = max(peak, int(np.abs(samples.astype(np.int32)).max()))
        digest.update(samples.tobytes())
        samples.tofile(out)
        length += len(samples)
    if not length:
        raise DataError("it holds no samples")
    return {"offset": offset, "length": length, "peak": peak, "digest": digest.hexdigest()}


def _to_int16(block: NDArray[np.float32], file: Path, before: int) -> NDArray[np.int16]:
    if not np.isfinite(block).all():
        place = before + int(np.flatnonzero(~np.isfinite(block))[0])
        raise DataError(f"{file}: sample {place} is not a number")
    return np.clip(np.rint(block * np.float32(32768)), -32768, 32767).astype("<i2")
