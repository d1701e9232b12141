"""Compiled code is kept on disk wherever that is possible, and never at a call's expense."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from mambakernels import _numba

KERNEL = """
import sys
from mambakernels._numba import cache_folder, jit

@jit
def triple(x):
    return 3 * x

assert triple(14) == 42
print(cache_folder(), sum(triple.stats.cache_hits.values()))
"""


def run_kernel(folder: Path, **environment: str) -> tuple[str, int]:
    """Where a fresh process keeps its code, and how often it found it there."""
    script = folder / "kernel.py"
    script.write_text(KERNEL)
    kept = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    where, hits = done.stdout.split()
    return where, int(hits)


def test_the_second_process_finds_what_the_first_compiled(tmp_path: Path) -> None:
    place = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert run_kernel(tmp_path, **place) == (str(tmp_path / "cache/mambakit/numba"), 0)
    assert run_kernel(tmp_path, **place)[1] == 1
    for file in (tmp_path / "cache").rglob("*.nb?"):  # torn by a crash
        file.write_bytes(file.read_bytes()[:10])
    assert run_kernel(tmp_path, **place)[1] == 0


def test_without_a_home_a_private_temporary_folder_serves(tmp_path: Path) -> None:
    """As with a read-only install and home: nothing is ever written beside the sources."""
    place = {"XDG_CACHE_HOME": "/dev/null/none", "TMPDIR": str(tmp_path)}
    where, _ = run_kernel(tmp_path, **place)
    assert Path(where).parent == tmp_path
    assert Path(where).stat().st_mode & 0o777 == 0o700
    assert run_kernel(tmp_path, **place)[1] == 1


def test_a_folder_that_others_can_write_is_not_trusted(tmp_path: Path) -> None:
    """The cache holds pickles: whoever can write it could run code in this process."""
    place = {"XDG_CACHE_HOME": "/dev/null/none", "TMPDIR": str(tmp_path)}
    where = Path(run_kernel(tmp_path, **place)[0])
    where.chmod(0o777)
    assert run_kernel(tmp_path, **place) == ("None", 0)


def test_numba_cache_dir_comes_first(tmp_path: Path) -> None:
    place = str(tmp_path / "given")
    assert run_kernel(tmp_path, NUMBA_CACHE_DIR=place)[0] == place


def test_a_full_disk_does_not_fail_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", full)

    @_numba.jit
    def double(x):
        return 2 * x

    assert double(4) == 8
