"""What sound files say of themselves, from their headers; decoded to the end where asked."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mambaaudio.waveform import AudioInfo, probe, stream
from mambacore.errors import DataError


@dataclass(frozen=True)
class FileInfo:
    """One row. verified: "" where only the header was read, else "ok"."""

    path: str
    format: str
    subtype: str
    rate: int
    channels: int
    frames: int
    seconds: float
    verified: str = ""

    @staticmethod
    def header() -> str:
        return "\t".join(field.name for field in fields(FileInfo))

    def row(self) -> str:
        cells = [getattr(self, field.name) for field in fields(self)]
        return "\t".join(f"{c:.6g}" if isinstance(c, float) else str(c) for c in cells)


def file_info(path: str | Path, *, verify: bool = False) -> FileInfo:
    """Read a header; with `verify`, decode the whole file in constant memory and compare.

    Raises:
        DataError: not a sound file, a rate of 0; with `verify`, also a file that breaks off, that
            is shorter than its header says, or that holds samples that are no finite numbers.
    """
    # libsndfile refuses a rate of 0, or takes it, with a message that says neither.
    declared = _wav(Path(path))
    if declared is not None and declared.rate == 0:
        raise DataError(
            f"{path}: its header says 0 samples a second; write the header anew with the true "
            "rate (sox -r RATE)"
        )
    info = probe(path)
    if info.rate < 1:
        raise DataError(f"{path}: its header says {info.rate} samples a second")
    if verify:
        _verify(path, info, declared)
    return FileInfo(
        str(path),
        info.format,
        info.subtype,
        info.rate,
        info.channels,
        info.frames,
        info.seconds,
        "ok" if verify else "",
    )


def _verify(path: str | Path, info: AudioInfo, declared: _Wav | None) -> None:
    if declared is not None and declared.missing > 0:
        raise DataError(
            f"{path}: cut short: its header says {declared.size:,} bytes of samples, the file "
            f"has {declared.size - declared.missing:,}; copy it again, or cut the header to what "
            "there is (sox in.wav out.wav)"
        )
    done = 0
    try:
        for block in stream(path):
            if not np.isfinite(block).all():
                place = done + int(np.flatnonzero(~np.isfinite(block))[0])
                raise DataError(f"{path}: sample {place} is not a finite number")
            done += len(block)
    except DataError as error:
        raise DataError(str(error).replace(" ()", " (it breaks off there)")) from error
    if done != info.frames:
        raise DataError(
            f"{path}: decodes to {done:,} frames, its header says {info.frames:,}: it breaks off"
        )


@dataclass(frozen=True)
class _Wav:
    """What a RIFF header declares: rate, bytes of samples, and how many of them are not there."""

    rate: int
    size: int
    missing: int


def _wav(path: Path) -> _Wav | None:
    """The header of a WAV file; None for anything else, RF64 and headers of streams included."""
    if not path.is_file():
        return None
    rate = -1
    with path.open("rb") as file:
        total = path.stat().st_size
        head = file.read(12)
        if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return None
        while len(chunk := file.read(8)) == 8:
            name, size = chunk[:4], struct.unpack("<I", chunk[4:])[0]
            if name == b"fmt ":
                body = file.read(size + size % 2)
                if len(body) < 8:
                    return None
                rate = struct.unpack("<I", body[4:8])[0]
            elif name == b"data":
                # A stream's writer could not know the size and wrote the largest.
                unknown = size >= 0xFFFFFFFF - 65536
                missing = 0 if unknown else max(0, size - (total - file.tell()))
                return _Wav(rate, size, missing)
            else:
                file.seek(size + size % 2, 1)
    return _Wav(rate, 0, 0) if rate >= 0 else None


def describe(folder: str | Path) -> dict[str, Any]:
    """Facts about the model in a model or run folder, as plain JSON values, without building it.

    Raises:
        DataError: no model there, or its files are damaged.
    """
    from mambaaudio.model_files import model_folder, read_model_config

    config, place = read_model_config(folder), model_folder(Path(folder))
    backbone = config.backbone
    return {
        "path": str(place),
        "rate": config.rate,
        "code": config.code,
        "labels": list(config.labels),
        "speakers": list(config.speakers),
        "end_event": config.end_event,
        "gain": config.gain,
        "parameters": _parameters(place / "model.safetensors"),
        "d_model": backbone.d_model,
        "pools": list(backbone.pools),
        "n_layer": backbone.n_layer,
        "mixers": list(backbone.mixers),
        "trained_on": dict(config.trained_on),
    }


def _parameters(path: Path) -> int:
    """From the header of a safetensors file: a little-endian length, then that much JSON."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(size))
    except (OSError, ValueError, struct.error) as error:
        raise DataError(f"{path} cannot be read as safetensors: {error}") from error
    header.pop("__metadata__", None)
    return sum(math.prod(entry["shape"]) for entry in header.values())
