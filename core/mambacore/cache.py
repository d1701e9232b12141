"""Where derived files live, and how files are written so that the old one is never half gone.

Everything is written beside its place, flushed to the disk and renamed; a crash or a full disk
leaves what was there before.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from mambacore.errors import DataError

_WRITE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def default_cache_dir() -> Path:
    """Folder for indexes, converted files and sequence stores; not created here.

    ``$MAMBAKIT_CACHE``, else ``mambakit`` in ``$XDG_CACHE_HOME`` or in the platform's cache
    folder (``~/.cache``, on macOS ``~/Library/Caches``); without a home, in the temporary folder.

    >>> default_cache_dir().is_absolute()
    True
    """
    if own := os.environ.get("MAMBAKIT_CACHE"):
        return Path(own).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).absolute() / "mambakit"
    try:
        home = Path.home()
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"mambakit-{os.getuid()}"
    base = home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"
    return base / "mambakit"


@contextmanager
def lock(
    path: str | os.PathLike[str], *, log: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold an exclusive lock between processes and threads; wait for it as long as it takes.

    path: the lock file, made with its folder when missing, and left there: removing it would let
        two processes lock two different files. The lock itself ends with the process that holds
        it, however it ends.
    log: called with a sentence when another process has the lock.
    Raises `DataError` where the file cannot be made or the file system has no locks.

    >>> with lock(Path(tempfile.mkdtemp()) / "x.lock"):
    ...     pass
    """
    path = Path(path)
    with _writing(path, "lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if log:
                log(f"waiting for another process that works on {path.with_suffix('')}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be locked ({error.strerror}); choose a cache folder on a local "
                "disk by setting MAMBAKIT_CACHE"
            ) from error
        yield
    finally:
        os.close(handle)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` at the end of the block.

    For writers that want a name; `atomic_write` gives an open file. The new file appears whole,
    or, when the block raises, not at all. What is there and is no regular file (``/dev/null``,
    a pipe) is written to directly; a symbolic link is followed.
    Raises `DataError` that names the file when it cannot be written or the disk is full.

    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic_path(path) as beside:
    ...     _ = beside.write_text("whole")
    >>> path.read_text()
    'whole'
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        with _writing(path, only_disk=True):
            yield target
        return
    with _writing(path):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = _beside(target, "tmp")
        # Fails before the work rather than after it.
        beside.touch(exist_ok=False)
    try:
        with _writing(path, only_disk=True):
            yield beside
        with _writing(path):
            _sync(beside)
            os.replace(beside, target)
            _sync(target.parent)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


@contextmanager
def atomic_write(
    path: str | os.PathLike[str], mode: Literal["w", "wb"] = "wb"
) -> Iterator[IO[Any]]:
    """An open file that takes the place of `path` at the end of the block; see `atomic_path`.

    mode: "wb" for bytes, "w" for UTF-8 text with "\\n" line ends.

    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic_write(path, "w") as file:
    ...     _ = file.write("whole")
    >>> path.read_text()
    'whole'
    """
    encoding, newline = ("utf-8", "\n") if mode == "w" else (None, None)
    with (
        atomic_path(path) as beside,
        open(beside, mode, encoding=encoding, newline=newline) as file,
    ):
        yield file


@contextmanager
def replace_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder beside `path` to fill; it takes the place of `path` at the end of the block.

    The old folder, if any, stays until the new one is whole, then goes. The exchange is one step
    where the file system can do that (Linux), else two renames.
    Raises `DataError` that names the folder when it cannot be written or the disk is full.

    >>> folder = Path(tempfile.mkdtemp()) / "model"
    >>> with replace_folder(folder) as beside:
    ...     _ = (beside / "config.json").write_text("{}")
    >>> [file.name for file in folder.iterdir()]
    ['config.json']
    """
    target = Path(os.path.realpath(path))
    with _writing(path):
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder", str(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = _beside(target, "tmp")
        beside.mkdir()
    try:
        with _writing(path, only_disk=True):
            yield beside
        with _writing(path):
            for folder, _, files in os.walk(beside):
                for file in files:
                    _sync(Path(folder, file))
                _sync(Path(folder))
            if target.exists() and not _exchange(beside, target):
                old = _beside(target, "old")
                os.rename(target, old)
                try:
                    os.rename(beside, target)
                except OSError:
                    os.rename(old, target)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            elif beside.exists() and not target.exists():
                os.rename(beside, target)
            _sync(target.parent)
    finally:
        # After an exchange this is the old folder.
        shutil.rmtree(beside, ignore_errors=True)


def _beside(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.{kind}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot sync a folder; the rename holds all the same.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step; False where the system cannot."""
    at_cwd, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0


@contextmanager
def _writing(
    path: str | os.PathLike[str], what: str = "file", *, only_disk: bool = False
) -> Iterator[None]:
    """Turn what the system says while writing into an error that names the user's path.

    only_disk: let errors pass that have nothing to do with a disk that is full or failing: the
        block within may read other files.
    """
    try:
        yield
    except OSError as error:
        # numpy's tofile reports a short write without an error number.
        disk = error.errno in _WRITE_ERRNOS or error.errno is None
        if only_disk and not disk:
            raise
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some space or choose another place; nothing was replaced"
        else:
            advice = "choose a place that can be written to"
        if what == "lock":
            advice += "; MAMBAKIT_CACHE names the folder for caches"
        kind = "" if what == "file" else f"{what} "
        raise DataError(f"{path}: {kind}cannot be written ({reason}): {advice}") from error
