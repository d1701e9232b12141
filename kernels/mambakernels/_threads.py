"""Run the parts of a kernel side by side, on Python threads that give up the GIL.

Numba's own threading layers are not used: one ends a forked child, another aborts when two threads
of the program call it. Here each call of `run` is a job; whoever calls takes part in it and idle
workers join in, so several threads may call at once and a call inside a call cannot deadlock.
Which thread runs which part is left to chance, so parts must write to places of their own and
their number must not depend on the number of threads: then the result's bits do not either.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

import torch


class _Job:
    def __init__(self, function: Callable[[int], object], parts: int) -> None:
        self._function = function
        self._parts = parts
        self._next = 0
        self._finished = 0
        self._lock = threading.Lock()
        self.done = threading.Event()
        self.error: BaseException | None = None

    def work(self) -> None:
        """Take parts until none is left. After an error the rest is skipped."""
        while True:
            with self._lock:
                part = self._next
                if part >= self._parts:
                    return
                self._next += 1
                skip = self.error is not None
            try:
                if not skip:
                    self._function(part)
            except BaseException as error:
                with self._lock:
                    self.error = self.error or error
            finally:
                with self._lock:
                    self._finished += 1
                    if self._finished == self._parts:
                        self.done.set()


class _Pool:
    """Worker threads that wait for jobs; made when first needed, as many as were asked for."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._workers = 0
        self._lock = threading.Lock()

    def _serve(self) -> None:
        while True:
            self._jobs.get().work()

    def offer(self, job: _Job, helpers: int) -> None:
        with self._lock:
            while self._workers < helpers:
                name = f"mambakernels-{self._workers}"
                threading.Thread(target=self._serve, name=name, daemon=True).start()
                self._workers += 1
        for _ in range(helpers):
            self._jobs.put(job)


_pool = _Pool()


def _renew_after_fork() -> None:
    """A child has none of its parent's threads, and its locks may be held by them."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_after_fork)


def run(function: Callable[[int], object], parts: int) -> None:
    """Call ``function(0)`` to ``function(parts - 1)``, each once, on `torch.get_num_threads()`.

    Returns when all are done; the first exception is raised here. `function` should spend its time
    in compiled code without the GIL (`_numba.jit`), and must not touch what other parts write.
    """
    threads = min(torch.get_num_threads(), parts)
    if threads <= 1:
        for part in range(parts):
            function(part)
        return
    job = _Job(function, parts)
    _pool.offer(job, threads - 1)
    job.work()
    job.done.wait()
    if job.error is not None:
        raise job.error
