"""What every verb that trains does around the training: its run folder, and what it notes there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mambacore.errors import UsageError
from mambacore.inputs import file_sha256

from . import environment
from .cli.fit_parser import FitArguments
from .runs import Run


@contextmanager
def run_of(arguments: FitArguments, *, leader: bool) -> Iterator[Run]:
    """The new run, or the one to resume, locked until the block ends.

    Args:
        arguments: the parsed command line.
        leader: False on the other ranks of a distributed run.

    Raises:
        UsageError: nothing to resume, a folder in use, or a training that has ended and that no
            override prolongs.
    """
    if arguments.resume is not None:
        run = Run.open(arguments.resume, leader=leader)
        if run.finished and not prolongs(arguments):
            run.release()
            raise UsageError(
                f"nothing to resume in {run.folder}: the training has ended and its model is in "
                f"{run.model}. To train on, raise --trainer.max_steps, --trainer.max_time or "
                "--trainer.patience."
            )
    else:
        assert arguments.run is not None
        run = Run.create(arguments.run, leader=leader)
    try:
        yield run
    finally:
        run.release()


def prolongs(arguments: FitArguments) -> bool:
    """Whether a resumed training shall go on past its end."""
    return any(
        f"trainer.{name}" in arguments.overrides for name in ("max_steps", "max_time", "patience")
    )


def note_start(
    run: Run, arguments: FitArguments, inputs: list[dict[str, Any]], notes: Mapping[str, Any]
) -> None:
    """environment.json of a new run, or an entry in a resumed one's."""
    if arguments.resume is not None and run.environment.is_file():
        run.note(resumed={**environment.describe(), "overrides": dict(arguments.overrides)})
    else:
        run.write_environment(inputs, dict(notes))


def inputs_of(samples: Path, read: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Path, size and SHA-256 of a sample sheet (when it is a file) and of what it names."""
    inputs = [dict(entry) for entry in read]
    if samples.is_file() and str(samples) not in {entry["path"] for entry in inputs}:
        sheet = {
            "path": str(samples),
            "bytes": os.path.getsize(samples),
            "sha256": file_sha256(samples),
        }
        inputs.insert(0, sheet)
    return inputs


def say_nothing(text: str) -> None:
    """What ranks other than the first say."""
