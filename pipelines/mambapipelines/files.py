"""Output files written beside and renamed, and the text stream of ``-o FILE``."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def replaced(path: str | os.PathLike[str], *, text: bool = True) -> Iterator[IO[Any]]:
    """Open a file beside `path` for writing; it takes `path`'s place only when all went well.

    The bytes are on the disk (``fsync``) before the rename, so after a crash at any moment `path`
    holds either its old content or all of the new one. On an error the new file is removed.

    Args:
        path: the file to write. Its folder must exist. A device or a pipe is written directly, a
            symbolic link is followed.
        text: UTF-8 text with ``\\n`` line ends; otherwise bytes.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; `path` is untouched.

    >>> import pathlib, tempfile
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
    >>> with replaced(target) as file:
    ...     _ = file.write("all or nothing")
    >>> target.read_text()
    'all or nothing'
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        # A device or a pipe cannot be replaced.
        with target.open("w" if text else "wb") as file:
            yield file
        return
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        if text:
            file: IO[Any] = os.fdopen(descriptor, "w", encoding="utf-8", newline="\n")
        else:
            file = os.fdopen(descriptor, "wb")
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError) and error.filename in (None, name):
            error.filename = str(path)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def link_or_copy(source: Path, target: Path) -> None:
    """Give `source`'s content a second name, atomically: a hard link where the disk can."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    try:
        os.link(source, beside)
    except OSError:
        with source.open("rb") as old, replaced(target, text=False) as new:
            while block := old.read(1 << 22):
                new.write(block)
        return
    os.replace(beside, target)


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """`value` as indented JSON with a final newline, written beside and renamed."""
    with replaced(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


@contextlib.contextmanager
def output(path: str | None) -> Iterator[IO[str]]:
    """Standard output for ``None`` and ``-``; otherwise a file written beside and renamed."""
    if path is None or path == "-":
        yield sys.stdout
        sys.stdout.flush()
    else:
        with replaced(path) as file:
            yield file
