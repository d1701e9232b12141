"""Writing beside and renaming: the old file stays whole whatever happens."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mambacore import cache
from mambacore.cache import atomic_path, atomic_write, default_cache_dir, lock, replace_folder
from mambacore.errors import DataError


def only(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_default_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAMBAKIT_CACHE", str(tmp_path / "a"))
    assert default_cache_dir() == tmp_path / "a"
    monkeypatch.delenv("MAMBAKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert default_cache_dir() == tmp_path / "b" / "mambakit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir().is_relative_to(tmp_path)
    assert default_cache_dir().name == "mambakit"


def test_the_new_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.txt"
    for text in ("one\n", "two\n"):
        with atomic_write(path, "w") as file:
            file.write(text)
        assert path.read_bytes() == text.encode()
    with atomic_write(path) as file:
        file.write(b"\xff")
        assert path.read_bytes() == b"two\n"
    assert path.read_bytes() == b"\xff"
    assert only(path.parent) == ["x.txt"]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    for error in (RuntimeError("own"), KeyboardInterrupt(), FileNotFoundError(2, "other file")):
        with pytest.raises(type(error)), atomic_write(path, "w") as file:
            file.write("half")
            raise error
        assert path.read_text() == "old"
        assert only(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("when", ["write", "sync"])
def test_a_full_disk_names_the_file_and_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_: object) -> None:
        raise full

    if when == "sync":
        monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DataError) as caught, atomic_write(path, "w") as file:
        file.write("half")
        if when == "write":
            raise full
    assert str(path) in str(caught.value)
    assert "No space left" in str(caught.value)
    assert path.read_text() == "old"
    assert only(tmp_path) == ["x.txt"]


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    with atomic_write(os.devnull, "w") as file:
        file.write("gone")
    assert not os.path.isfile(os.devnull)
    # /dev/full answers every write as a full disk does.
    if os.path.exists("/dev/full"):
        link = tmp_path / "full"
        link.symlink_to("/dev/full")
        with pytest.raises(DataError, match="No space left"), atomic_write(link, "w") as file:
            file.write("x")


def test_a_closed_pipe_stays_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BrokenPipeError), atomic_path(tmp_path / "pipe"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert only(tmp_path) == ["pipe"]


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "x")
    with atomic_write(tmp_path / "link", "w") as file:
        file.write("through")
    assert (tmp_path / "real" / "x").read_text() == "through"
    assert (tmp_path / "link").is_symlink()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "x"):
        with pytest.raises(DataError) as caught, atomic_path(path):
            pass
        assert str(path) in str(caught.value)
    with pytest.raises(DataError, match="it is a file"), replace_folder(tmp_path / "file"):
        pass
    with pytest.raises(DataError, match="lock"), lock(tmp_path / "file" / "x.lock"):
        pass


@pytest.mark.parametrize("exchange", [True, False])
def test_the_new_folder_takes_the_place_of_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(cache, "_exchange", lambda *_: False)
    path = tmp_path / "model"
    for name in ("one", "two"):
        with replace_folder(path) as beside:
            (beside / "deep").mkdir()
            (beside / "deep" / name).write_text(name)
        assert only(path / "deep") == [name]
        assert only(tmp_path) == ["model"]
    with pytest.raises(RuntimeError), replace_folder(path) as beside:
        (beside / "half").write_text("")
        raise RuntimeError
    with pytest.raises(DataError, match="model"), replace_folder(path) as beside:
        raise OSError(errno.ENOSPC, "No space left on device")
    assert only(path / "deep") == ["two"]
    assert only(tmp_path) == ["model"]


def test_a_failing_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    with replace_folder(path) as beside:
        (beside / "old").touch()
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if str(source).endswith(".tmp"):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(cache, "_exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(DataError, match="Input/output error"), replace_folder(path) as beside:
        (beside / "new").touch()
    assert only(path) == ["old"]
    assert only(tmp_path) == ["model"]


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with lock(tmp_path / "x.lock"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_lock_keeps_other_processes_out_and_ends_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    program = (
        "import sys, time; from mambacore.cache import lock\n"
        "with lock(sys.argv[1]): print('held', flush=True); time.sleep(100)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    said: list[str] = []
    threading.Timer(0.3, holder.kill).start()
    started = time.monotonic()
    with lock(path, log=said.append):
        assert time.monotonic() - started > 0.2
    assert len(said) == 1
    holder.wait()
    holder.stdout.close()
