"""Generation on a GPU: one captured CUDA graph holds a whole period of steps.

The slow levels run once in `total_pool` steps, so that many steps repeat exactly and are one
graph: all levels when due, the sampling on the device from uniforms that were uploaded before.
Nothing waits for the host within a period; between two there are a launch and two copies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mambaaudio.engines import Drawn, TorchEngine
from mambaaudio.model import WaveformState
from mambacore import state as states

_WARM_UP = 2


class GraphEngine(TorchEngine):
    """`TorchEngine` whose periods are replayed; the same symbols as its own steps."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self._period = self.model.config.backbone.total_pool
        # Place within the period. Levels count from the slowest one's frame.
        self._place = _place(self.state)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._surplus: list[Drawn] = []

    @torch.no_grad()
    def run(self, count: int) -> Drawn:
        """See `Engine`."""
        made, have = self._surplus, sum(part[0].shape[1] for part in self._surplus)
        if have < count and (self._place or self._incomplete()):
            made.append(self._by_steps(self._period - self._place))
            have += made[-1][0].shape[1]
        if have < count:
            made.append(self._by_periods(-(-(count - have) // self._period)))
        symbols = np.concatenate([part[0] for part in made], 1)
        logs = np.concatenate([part[1] for part in made], 1)
        rest = symbols[:, count:], logs[:, count:]
        self._surplus = [rest] if rest[0].shape[1] else []
        return symbols[:, :count], logs[:, :count]

    def _incomplete(self) -> bool:
        """Whether a level has no state yet, because its first frame was never whole."""
        return self.state is None or _has_none(self.state.backbone)

    def _by_steps(self, count: int) -> Drawn:
        self._place = (self._place + count) % self._period
        return super().run(count)

    def _by_periods(self, count: int) -> Drawn:
        uniforms = torch.from_numpy(self.uniforms.draw(count * self._period)).to(self.last.device)
        if self._graph is None:
            self._capture()
        assert self._graph is not None
        symbols = uniforms.new_empty(uniforms.shape, dtype=torch.int64)
        logs = uniforms.new_empty(uniforms.shape, dtype=torch.float32)
        for first in range(0, uniforms.shape[1], self._period):
            span = slice(first, first + self._period)
            self._uniform.copy_(uniforms[:, span])
            self._graph.replay()
            symbols[:, span].copy_(self._symbols)
            logs[:, span].copy_(self._logs)
        return symbols.cpu().numpy(), logs.cpu().numpy()

    def _capture(self) -> None:
        """Record one period that begins and ends in the same memory."""
        assert self.state is not None
        before = [
            tensor.clone(memory_format=torch.contiguous_format)
            for tensor in (*states.tensors(self.state), self.last, self.ended)
        ]
        # The state's own memory becomes the graph's: what it reads and what it leaves behind.
        self.state = states.map_tensors(lambda tensor: tensor.clone(), self.state)
        self.last, self.ended = self.last.clone(), self.ended.clone()
        home = [*states.tensors(self.state), self.last, self.ended]
        place = self.position
        self._uniform = torch.zeros(
            len(self.last), self._period, dtype=torch.float64, device=self.last.device
        )
        stream = torch.cuda.Stream(self.last.device)
        stream.wait_stream(torch.cuda.current_stream(self.last.device))
        with torch.cuda.stream(stream):  # compiles kernels, allocates the libraries' workspaces
            for _ in range(_WARM_UP):
                self._one_period(home)
        torch.cuda.current_stream(self.last.device).wait_stream(stream)
        for tensor, value in zip(home, before, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._symbols, self._logs = self._one_period(home)
        # Recording does not run, but be sure that the state is the one from before.
        for tensor, value in zip(home, before, strict=True):
            tensor.copy_(value)
        self.position = place
        self._graph = graph

    def _one_period(self, home: list[Tensor]) -> tuple[Tensor, Tensor]:
        """A period of steps from `home`, whose memory holds the state again afterwards."""
        state, last, ended = self.state, self.last, self.ended
        made = [self.step(self._uniform[:, t]) for t in range(self._period)]
        after = [*states.tensors(self.state), self.last, self.ended]
        for tensor, value in zip(home, after, strict=True):
            if tensor is not value:
                tensor.copy_(value)
        self.state, self.last, self.ended = state, last, ended
        return torch.stack([pair[0] for pair in made], 1), torch.stack(
            [pair[1] for pair in made], 1
        )


def _place(state: WaveformState | None) -> int:
    """Steps since the slowest level's last frame began."""
    place, unit = 0, 1
    level = None if state is None else state.backbone
    while level is not None and hasattr(level, "pending"):
        place += level.pending.shape[1] * unit
        unit *= level.frame.shape[1]
        level = level.below
    return place


def _has_none(level: Any) -> bool:
    """Whether a level below has never run."""
    while hasattr(level, "pending"):
        level = level.below
        if level is None:
            return True
    return False
