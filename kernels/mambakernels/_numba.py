"""Numba as the CPU kernels use it: without the GIL, compiled code kept on disk wherever possible.

Numba's own ``cache=True`` fails where neither the install nor the home folder can be written, and
does not see changes in other files that a kernel uses. Here the folder is the first that works of
NUMBA_CACHE_DIR, the user's cache folder and a private folder of the system's temporary one; else
the code is compiled in each process. An entry is valid for the exact sources of this package's
compiled code (files `_*.py` and `*/cpu*.py`) and of the function's own file. A cache that cannot
be read or written, or a full disk, never fails a call.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import types
from numba.core.caching import CompileResultCacheImpl, FunctionCache

_PACKAGE = Path(__file__).resolve().parent


def _user_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "mambakit" / "numba"


def _usable(folder: Path, private: bool = False) -> bool:
    """Whether files can be kept there; a private folder must be ours alone (it holds pickles)."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if private:
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
                return False
            if hasattr(os, "getuid") and found.st_uid != os.getuid():
                return False
        with tempfile.TemporaryFile(dir=folder):
            return True
    except (OSError, RuntimeError):
        return False


@cache
def cache_folder() -> Path | None:
    """Where compiled code is kept on disk; None if nowhere."""
    given = getattr(numba.config, "CACHE_DIR", "")  # NUMBA_CACHE_DIR, read when Numba is imported
    if given and _usable(Path(given)):
        return Path(given)
    if _usable(_user_folder()):
        return _user_folder()
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    temporary = Path(tempfile.gettempdir()) / f"mambakit-numba-{user}"
    return temporary if _usable(temporary, private=True) else None


@cache
def _sources() -> str:
    """One hash over all files with compiled code: kernels inline functions of other files."""
    digest = hashlib.sha256()
    for path in sorted([*_PACKAGE.glob("_*.py"), *_PACKAGE.glob("*/cpu*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _Locator:
    """Numba's question: in which folder, for which sources."""

    def __init__(self, function: Callable, file: str, folder: Path) -> None:
        self._py_file = file  # read by Numba for its warnings
        self._line = function.__code__.co_firstlineno
        self._folder = folder

    @classmethod
    def from_function(cls, function: Callable, file: str) -> _Locator | None:
        folder = cache_folder()
        return None if folder is None else cls(function, file, folder)

    def ensure_cache_path(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str:
        own = hashlib.sha256(Path(self._py_file).read_bytes())  # a file of another package
        return _sources() + own.hexdigest()

    def get_disambiguator(self) -> str:
        where = hashlib.sha256(os.path.abspath(self._py_file).encode()).hexdigest()[:8]
        return f"{self._line}-{where}"


class _CacheOfCode(CompileResultCacheImpl):
    _locator_classes = [_Locator]  # noqa: RUF012 (Numba's name)


class _Cache(FunctionCache):
    _impl_class = _CacheOfCode

    def load_overload(self, sig, target_context):
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a torn or foreign file, in whatever way: begin anew
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig, data) -> None:
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


def _without_literals(dispatcher: Any) -> None:
    """Compile once for a type, where Numba would do so for each constant that a kernel passes."""
    template = dispatcher.get_call_template

    def get_call_template(args, kws):
        plain = tuple(types.unliteral(a) for a in args)
        return template(plain, {name: types.unliteral(a) for name, a in kws.items()})

    dispatcher.get_call_template = get_call_template


def jit(function: Callable | None = None, *, inner: bool = False, **options: Any) -> Any:
    """Compile with Numba: no Python objects, no GIL, NumPy's division, cached on disk.

    Use as ``@jit`` or ``@jit(option=...)``; options are `numba.njit`'s. Floating-point maths keeps
    its NaN and infinities; only multiply and add may be fused into one.

    inner: the function is only called from compiled functions, so that nothing is compiled for
        calls from Python (shorter compilation).
    """
    if function is None:
        return lambda given: jit(given, inner=inner, **options)
    settings = {
        "nogil": True,
        "error_model": "numpy",
        "boundscheck": False,
        "fastmath": {"contract"},
        "no_cpython_wrapper": inner,
        "no_cfunc_wrapper": True,
        **options,
    }
    dispatcher: Any = numba.njit(**settings)(function)
    _without_literals(dispatcher)
    # A cache entry of the outer function holds all of its code.
    if not inner and cache_folder() is not None and not getattr(numba.config, "DISABLE_JIT", False):
        dispatcher._cache = _Cache(function)
    return dispatcher
