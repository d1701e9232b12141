"""A process of a training that dies: noticed, said once, and the others ended.

Left alone, the others wait: gloo breaks the connection at once, with an internal error on every
process; NCCL waits for the process group's timeout of half an hour; Lightning's launcher kills
everything without a word. Here a thread in each process counts up its own number in the store
that the processes met in, and watches its right neighbour's.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from mambacore.errors import DataError

PERIOD = 1.0  # seconds between two looks
PATIENCE = 60.0  # seconds without a sign of life
_BROKEN = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "TCPStore")


class ProcessLost(DataError):
    """Another process of the training is gone; without a text where another process says it."""


class Watch(Callback):
    """Watches the processes of a distributed training while it runs.

    Args:
        advice: what to do next, the message's end.
        period: seconds between two looks. patience: seconds without a sign of life.
        end: ends this process from the watching thread.
    """

    def __init__(
        self,
        advice: str,
        *,
        period: float = PERIOD,
        patience: float = PATIENCE,
        end: Callable[[int], Any] = os._exit,
    ) -> None:
        self._advice = advice
        self._period, self._patience, self._end = period, patience, end
        self._store: Any = None
        self._children: list[Any] = []
        self._rank = self._size = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._said = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The processes have met: start watching."""
        if trainer.world_size == 1 or not dist.is_initialized():
            return
        self._children = list(getattr(trainer.strategy.launcher, "procs", []))
        _dismiss_lightnings_observer()
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        # A connection of its own: the main thread may be waiting on the other one.
        store: Any = dist.distributed_c10d._get_default_store()
        self._store = dist.PrefixStore(f"mambapipelines_watch_{_round()}", store.clone())
        threading.Thread(target=self._watch, daemon=True, name="process-watch").start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The training ended here; the neighbours need no sign of life any more."""
        # After an error this process keeps watching, because what follows may hang.
        if self._store is not None and sys.exc_info()[0] is None:
            self._finish()

    def explain(self, error: BaseException) -> ProcessLost | None:
        """What a broken exchange means, or None where `error` is something else."""
        if self._store is None or not _is_broken(error):
            return None
        text = f"another process of this training has died. {self._advice}"
        return ProcessLost(text if self._speaks() else "")

    def _finish(self) -> None:
        self._stop.set()
        with contextlib.suppress(RuntimeError):  # the store's process may have ended first
            self._store.set(f"done/{self._rank}", "1")

    def _watch(self) -> None:
        neighbour = (self._rank + 1) % self._size
        seen, since = -1, time.monotonic()
        while not self._stop.wait(self._period):
            try:
                self._store.add(f"alive/{self._rank}", 1)
                lost = self._store.check(["lost"])
                count = self._store.add(f"alive/{neighbour}", 0)
                done = self._store.check([f"done/{neighbour}"])
            except RuntimeError:
                if not self._stop.is_set():
                    self._give_up("the first process of this training has died")
                return
            now = time.monotonic()
            if count != seen or done:
                seen, since = count, now
            for place, child in enumerate(self._children):
                if child.poll():
                    self._give_up(f"process {place + 1} of this training {_how(child.poll())}")
                    return
            if lost or now - since > self._patience:
                self._give_up(f"process {neighbour} of this training gave no sign of life")
                return

    def _give_up(self, what: str) -> None:
        if self._speaks():
            sys.stderr.write(f"error: {what}. {self._advice}\n")
            sys.stderr.flush()
        for child in self._children:
            if child.poll() is None:
                child.kill()
        self._end(1)

    def _speaks(self) -> bool:
        """Whether this process is the one that tells."""
        with self._lock:
            if self._said:
                return False
            self._said = True
        try:
            self._store.set("lost", "1")
            return self._store.add("told", 1) == 1
        except RuntimeError:
            return self._rank == 1  # the store went down with process 0


_rounds = 0


def _round() -> int:
    """Trainings of this process so far, the same on all of them: old signs of life do not count."""
    global _rounds
    _rounds += 1
    return _rounds


def _is_broken(error: BaseException) -> bool:
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _BROKEN)


def _how(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _dismiss_lightnings_observer() -> None:
    """Lightning's own thread kills all processes, this one included, before anything is said."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer" and hasattr(thread, "_child_processes"):
            thread._child_processes = []  # type: ignore[attr-defined]
