"""Checkpoints: what they hold, when they are written, and how a training goes on from one.

A checkpoint holds the weights, the optimiser's state and the position: the number of optimiser
steps done. Data, learning rate, window length and random numbers are functions of (seed, step), so
the position stands for all of them. Lightning's own loop counters are left out: they are set from
the position (`place`), which spares the many cases of a restart in the middle of something.

Written between two steps only, always beside and renamed: a kill at any moment leaves the previous
checkpoint whole.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mambacore.cache import atomic_write
from mambacore.errors import DataError

POSITION = "mambapipelines_position"


class AtomicCheckpoints(TorchCheckpointIO):
    """Reads without unpickling code, writes beside and renames."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Save; on an error (a full disk) the file that was there stays."""
        checkpoint = {key: value for key, value in checkpoint.items() if key != "loops"}
        # torch.save into a file reports a full disk as an unreadable internal error.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load onto the CPU; the strategy moves what it needs."""
        return read(Path(path))


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's content.

    Raises:
        DataError: the file is damaged or is no checkpoint of this project.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, KeyError) as error:
        raise DataError(
            f"{path} is not a readable checkpoint ({type(error).__name__}); it is damaged."
        ) from None
    if not isinstance(content, dict) or POSITION not in content:
        raise DataError(f"{path} is not a checkpoint of mambapipelines.")
    return content


def place(trainer: Trainer, position: int, accumulate: int) -> None:
    """Tell a new trainer that `position` optimiser steps are done, so that its counters
    (``global_step``, validation and logging intervals, ``max_steps``) go on from there."""
    loop = trainer.fit_loop.epoch_loop
    batches = position * accumulate
    for name in ("ready", "started", "processed", "completed"):
        setattr(loop.batch_progress.total, name, batches)
    steps = loop.automatic_optimization.optim_progress.optimizer.step.total
    steps.ready = steps.completed = position
    loop._batches_that_stepped = position
