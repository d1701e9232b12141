"""What a run writes: JSON, second names of a file, and the text stream of ``-o FILE``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mambacore.cache import atomic_path, atomic_write


def link_or_copy(source: Path, target: Path) -> None:
    """Give `source`'s content a second name, atomically: a hard link where the disk can."""
    with atomic_path(target) as beside:
        beside.unlink()
        try:
            os.link(source, beside)
        except OSError:
            shutil.copyfile(source, beside)


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """`value` as indented JSON with a final newline, written beside and renamed."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


@contextlib.contextmanager
def output(path: str | None) -> Iterator[IO[str]]:
    """Standard output for ``None`` and ``-``; otherwise a file written beside and renamed."""
    if path is None or path == "-":
        yield sys.stdout
        sys.stdout.flush()
    else:
        with atomic_write(path, "w") as file:
            yield file
