"""The run folder: one folder holds all that one training reads, decides and leaves behind.

::

    config.yaml        every option; `--config RUN/config.yaml` repeats the run
    environment.json   versions, hardware, commands, sha256 of every input
    metrics.csv        one row a measurement
    checkpoints/       last.ckpt (where --resume goes on), best.ckpt (best validation score)
    model/             the best weights, exported when the training ends
    baselines-N.npz    k-mer baselines for windows of N bases
    cache/             the inputs, encoded
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import IO, Any

from mambacore.cache import atomic_write
from mambacore.errors import DataError, UsageError

from . import environment
from .files import write_json

_UNFINISHED = {"config.yaml", "environment.json", "metrics.csv", "cache", "checkpoints", ".lock"}


class Run:
    """One run folder. `create` makes one, `open` finds one to resume; both lock it.

    Args:
        folder: where it is.
        fresh: whether this process made what is in it.
    """

    def __init__(self, folder: str | os.PathLike[str], *, fresh: bool = False) -> None:
        self.folder = Path(folder)
        self._fresh = fresh
        self._made_folder = False
        self._lock: IO[str] | None = None

    @property
    def config(self) -> Path:
        """Every option, as YAML."""
        return self.folder / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One row a measurement, as CSV."""
        return self.folder / "metrics.csv"

    @property
    def environment(self) -> Path:
        """What the run was made with, as JSON."""
        return self.folder / "environment.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def last(self) -> Path:
        """Where a resumed training goes on."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """The state with the best validation score."""
        return self.checkpoints / "best.ckpt"

    @property
    def model(self) -> Path:
        """The exported model."""
        return self.folder / "model"

    @property
    def cache(self) -> Path:
        """The encoded inputs."""
        return self.folder / "cache"

    def baselines(self, window: int) -> Path:
        """The k-mer baselines for windows of that length."""
        return self.folder / f"baselines-{window}.npz"

    @classmethod
    def create(cls, folder: str | os.PathLike[str], *, leader: bool = True) -> Run:
        """A new run in an empty or new folder.

        What a killed start has left (nothing to resume from yet) is cleared away.

        Args:
            folder: where; parents are made.
            leader: False on the other ranks of a distributed run, which only look on.

        Raises:
            UsageError: the folder holds a run or anything else.
            OSError: it cannot be written.
        """
        run = cls(folder, fresh=True)
        if not leader:
            return run
        path = run.folder
        if path.exists() and not path.is_dir():
            raise UsageError(f"--run {path} is a file; name a new folder.")
        if path.is_dir():
            run._refuse_if_used()
        else:
            path.mkdir(parents=True)
            run._made_folder = True
        run._acquire()
        for leftover in (run.metrics, run.environment, run.config):
            leftover.unlink(missing_ok=True)
        run.checkpoints.mkdir(exist_ok=True)
        return run

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, leader: bool = True) -> Run:
        """A run that can be resumed.

        Raises:
            UsageError: there is nothing to resume: no folder, no configuration or no checkpoint.
        """
        run = cls(folder)
        what = None
        if not run.folder.is_dir():
            what = "there is no such folder"
        elif not run.config.is_file():
            what = "it holds no config.yaml, so it is not a run folder"
        elif not run.last.is_file():
            what = "it holds no checkpoint: that training was stopped before its first step"
        if what:
            raise UsageError(
                f"nothing to resume in {run.folder}: {what}. Start a training with --run FOLDER."
            )
        if leader:
            run._acquire()
        return run

    def _refuse_if_used(self) -> None:
        content = {entry.name for entry in self.folder.iterdir()}
        content = {name for name in content if not name.endswith(".tmp")}
        if self.last.is_file() or self.model.exists():
            raise UsageError(
                f"--run {self.folder} already holds a training. Continue it with --resume "
                f"{self.folder}, or name another folder."
            )
        if others := sorted(content - _UNFINISHED):
            raise UsageError(
                f"--run {self.folder} is not empty (it holds {others[0]!r}). Name a new folder."
            )

    def _acquire(self) -> None:
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another process is training in {self.folder}. Wait for it or name another folder."
            ) from None
        except OSError:
            return  # a file system without locks

    def release(self) -> None:
        """Unlock the folder; a start that failed before its first checkpoint leaves nothing."""
        if self._lock is None:
            return
        if self._fresh and not self.last.is_file():
            for name in _UNFINISHED:
                path = self.folder / name
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            if self._made_folder and not any(self.folder.iterdir()):
                self.folder.rmdir()
        else:
            (self.folder / ".lock").unlink(missing_ok=True)
        self._lock.close()
        self._lock = None

    def write_config(self, text: str) -> None:
        """Save the configuration."""
        with atomic_write(self.config, "w") as file:
            file.write(text)

    def write_environment(self, inputs: list[dict[str, Any]], notes: dict[str, Any]) -> None:
        """Save what the run is made with; `inputs` are dictionaries of path, bytes and sha256."""
        write_json(self.environment, {**environment.describe(), **notes, "inputs": inputs})

    def read_environment(self) -> dict[str, Any]:
        """What `write_environment` saved.

        Raises:
            DataError: the file is damaged.
        """
        try:
            return json.loads(self.environment.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise DataError(f"{self.environment} is not valid JSON: {error}.") from None

    def note(self, **entries: Any) -> None:
        """Add entries to environment.json; ``resumed`` entries are collected in a list."""
        content = self.read_environment()
        if "resumed" in entries:
            entries["resumed"] = [*content.get("resumed", []), entries["resumed"]]
        write_json(self.environment, {**content, **entries})

    @property
    def finished(self) -> bool:
        """Whether the run has ended: trained, exported, and noted so."""
        return self.environment.is_file() and "finished" in self.read_environment()
