"""Random access to the records of a FASTA file, by name and range, through htslib's index."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mambabio.alphabet import Ids, encode
from mambabio.errors import SequenceError
from mambabio.fasta_index import open_fasta, prepare
from mambacore.cache import default_cache_dir, lock, replace_folder
from mambacore.errors import UsageError

# Letters that pass through Python text at a time, whatever is fetched.
_SLICE_BASES = 1 << 22


class Region(NamedTuple):
    """A stretch of a record, 0-based and half-open; `end` None reaches to the record's end."""

    name: str
    start: int
    end: int | None


def parse_region(text: str, names: Collection[str] = ()) -> Region:
    """Read a region as samtools writes it: ``name``, ``name:a``, ``name:a-b``; 1-based, closed.

    text: thousands may be set apart by commas; ``{name}:a-b`` says where a name with colons ends.
    names: the names of the file, if known: a text that is one of them as a whole is that record.
    Raises `SequenceError` for a range that is none.

    >>> parse_region("chr1:1,000-2,000")
    Region(name='chr1', start=999, end=2000)
    >>> parse_region("{HLA:01:01}:5-")
    Region(name='HLA:01:01', start=4, end=None)
    """
    text = text.strip()
    shown = f"region {text!r}"
    form = "write name:first-last, counting from 1, as in chr1:1,000-2,000"
    if text.startswith("{"):
        name, closed, rest = text[1:].partition("}")
        if not closed or (rest and not rest.startswith(":")):
            raise SequenceError(f"{shown}: after '{{' comes a name, '}}' and then ':'; {form}")
        span = rest[1:] if rest else None
    elif text in names or ":" not in text:
        name, span = text, None
    else:
        name, _, span = text.rpartition(":")
        if not re.fullmatch(r"[\d,.\s–-]*", span):
            # The colon belongs to a name without a range.
            name, span = text, None
    if not name:
        raise SequenceError(f"{shown} has no record name; {form}")
    if span is None:
        return Region(name, 0, None)
    match = re.fullmatch(r"(\d[\d,]*)(-(\d[\d,]*)?)?", span)
    if not match:
        raise SequenceError(f"{shown}: {span!r} is not a range; {form}")
    first = int(match[1].replace(",", ""))
    last = int(match[3].replace(",", "")) if match[3] else None
    if first < 1:
        raise SequenceError(f"{shown} starts at {first}; positions count from 1")
    if last is not None and last < first:
        raise SequenceError(f"{shown} ends before it starts: {last} is less than {first}; {form}")
    return Region(name, first - 1, last)


class IndexedFasta:
    """Records of a FASTA file by name and range, without reading the rest.

    path: a FASTA file, plain or bgzip. Anything else that `read_records` reads (a gzip file, a
        FASTA with lines of uneven length, GenBank) is converted once into the cache.
    cache_dir: folder for indexes and conversions; `default_cache_dir()` when None. They are
        found by the file's path, size and time of change and made anew when those differ;
        nothing is ever written beside the input, so read-only folders work.
    log: called with a sentence when a file is converted or looked through, which takes a while;
        by default it is printed on stderr.
    Raises `SequenceError` for whatever `read_records` refuses, and for names that occur twice.

    Safe to use from several processes and after a fork (the file is opened again), and to pickle.
    From several threads, give each its own.

    >>> import tempfile
    >>> from mambabio import decode
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "x.fa").write_text(">chr1 test\\nACGT\\nACGA\\n")
    >>> with IndexedFasta(folder / "x.fa", folder / "cache") as fasta:
    ...     fasta.names, fasta.length("chr1"), decode(fasta.fetch("chr1", 2, 6))
    (('chr1',), 8, 'GTAC')
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        cache_dir: str | os.PathLike[str] | None = None,
        *,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        if self.path == "-":
            raise UsageError("random access needs a file; standard input can only be read once")
        self.cache_dir = Path(cache_dir) if cache_dir is not None else default_cache_dir()
        self._log = log
        self._open()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the records, in the file's order."""
        return tuple(self._lengths)

    def length(self, name: str) -> int:
        """Bases in a record.  Raises `SequenceError` for a name that is not there."""
        if name not in self._lengths:
            some = ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")
            raise SequenceError(f"{self.path}: no record {name!r}; there are {some}")
        return self._lengths[name]

    def resolve(self, region: str) -> tuple[str, int, int]:
        """Name, start and end (0-based, half-open) of a region text, checked against the record."""
        name, start, end = parse_region(region, self._lengths)
        end = self.length(name) if end is None else end
        self._check_range(name, start, end)
        return name, start, end

    def fetch(self, name: str, start: int = 0, end: int | None = None) -> Ids:
        """Token ids of ``[start, end)``, 0-based and half-open; to the record's end by default.

        Returns uint8 (end - start,). Raises `SequenceError` for an unknown name, a range outside
        the record, or a file that changed since it was opened.
        """
        end = self.length(name) if end is None else end
        self._check_range(name, start, end)
        if self._pid != os.getpid():
            self._open()
        if _stamp(self.path) != self._stamp:
            raise SequenceError(f"{self.path}: the file changed while it was in use; start again")
        ids = np.empty(end - start, dtype=np.uint8)
        for at in range(start, end, _SLICE_BASES):
            to = min(at + _SLICE_BASES, end)
            ids[at - start : to - start] = self._slice(name, at, to)
        return ids

    def _slice(self, name: str, start: int, end: int) -> Ids:
        try:
            letters: str = self._fasta.fetch(reference=name, start=start, end=end)
        except (OSError, ValueError, KeyError) as error:
            raise SequenceError(
                f"{self.path}: record {name!r} cannot be read from {start + 1} to {end}: {error}"
            ) from error
        if len(letters) != end - start:
            raise SequenceError(
                f"{self.path}: record {name!r} gave {len(letters)} bases of {end - start}; "
                "the file is damaged or was changed"
            )
        return encode(letters)

    def close(self) -> None:
        """Close the file; also done at the end of a ``with`` block."""
        self._fasta.close()

    def __enter__(self) -> IndexedFasta:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "cache_dir": self.cache_dir, "_log": self._log}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _check_range(self, name: str, start: int, end: int) -> None:
        length = self.length(name)
        if not 0 <= start <= end <= length:
            raise SequenceError(
                f"{self.path}: positions {start + 1:,} to {end:,} are not within record {name!r}, "
                f"which has {length:,} bases"
            )

    def _open(self) -> None:
        """Open through an index that fits the file as it is now, made here if need be."""
        self._stamp = _stamp(self.path)
        full = os.path.realpath(self.path)
        folder = self.cache_dir / "fasta" / hashlib.sha256(os.fsencode(full)).hexdigest()[:24]
        ready = folder / "-".join(map(str, self._stamp))
        # Opening is done under the lock too: another process may be clearing an old index away.
        with lock(folder.with_suffix(".lock"), log=self._say):
            if not (ready / "index.fai").exists():
                if folder.exists():
                    shutil.rmtree(folder, ignore_errors=True)
                with replace_folder(ready) as beside:
                    prepare(self.path, beside, self._say)
                    if _stamp(self.path) != self._stamp:
                        raise SequenceError(
                            f"{self.path}: the file changed while it was read; start again"
                        )
            self._fasta = open_fasta(full, ready)
        self._lengths = dict(zip(self._fasta.references, self._fasta.lengths, strict=True))
        self._pid = os.getpid()

    def _say(self, message: str) -> None:
        if self._log is not None:
            self._log(message)
        else:
            print(message, file=sys.stderr)


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise SequenceError(f"{path}: {error.strerror or error}; check the path") from error
    if not stat.S_ISREG(status.st_mode):
        raise SequenceError(f"{path}: random access needs a plain file, not a pipe or a folder")
    return status.st_size, status.st_mtime_ns
