"""What an input file was when it was read: enough to know it again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TypedDict


class InputFile(TypedDict):
    """One input: its resolved path, size, time of change in ns, and checksum."""

    path: str
    bytes: int
    mtime_ns: int
    sha256: str


def input_file(path: Path) -> InputFile:
    """The entry of a file as it is now."""
    status = path.stat()
    return {
        "path": str(path),
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": file_sha256(path),
    }


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
