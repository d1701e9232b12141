"""Generation on a GPU: one captured CUDA graph holds a whole period of steps.

The slow levels run once in `total_pool` steps, so that many steps repeat exactly and are one
graph: all levels when due, the sampling on the device from uniforms that were uploaded before.
Nothing waits for the host within a period; between two there are a launch and three copies.

Models of Mamba and S4D mixers take fused steps (`mambacore.decoding_gpu`): a stage is one launch,
head and draw another. Others are captured as their modules run them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambaaudio.engines import Drawn, TorchEngine, place_in_period
from mambaaudio.sampling import Sampling, pick
from mambacore import state as states
from mambacore.decoding_gpu import DeviceDecoding, why_not
from mambacore.recording import aside

_WARM_UP = 2


class GraphEngine(TorchEngine):
    """`TorchEngine` whose periods are replayed; the same symbols as its own steps.

    Fused steps are float32 whatever the model is; the others run in the model's dtype.
    """

    def __init__(self, *arguments: Any, fused: bool = True, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._period = self.model.config.backbone.total_pool
        # Place within the period. Levels count from the slowest one's frame.
        self._place = place_in_period(self.state)
        self._memory: _FusedPeriod | _ModulePeriod | None = None
        if fused and why_not(self.model.backbone) is None:
            self._memory = _FusedPeriod(self)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._surplus: list[Drawn] = []

    @torch.no_grad()
    def run(self, count: int) -> Drawn:
        """See `Engine`."""
        made, have = self._surplus, sum(part[0].shape[1] for part in self._surplus)
        if have < count and (self._graph is None or self._place):
            # Up to a period's border step by step: that compiles what will be captured.
            made.append(self._by_steps())
            have += made[-1][0].shape[1]
        if have < count:
            made.append(self._by_periods(-(-(count - have) // self._period)))
        symbols = np.concatenate([part[0] for part in made], 1)
        logs = np.concatenate([part[1] for part in made], 1)
        rest = symbols[:, count:], logs[:, count:]
        self._surplus = [rest] if rest[0].shape[1] else []
        return symbols[:, :count], logs[:, :count]

    @torch.no_grad()
    def keep(self, rows: NDArray[np.int64]) -> None:
        """See `Engine`."""
        if self._memory is None:
            super().keep(rows)
            return
        each = torch.from_numpy(self.sampling.stepped(rows)).to(self.last.device)
        self._memory.keep(each)

    def _by_steps(self) -> Drawn:
        count, first = self._period - self._place, self._place
        self._place = 0
        if not isinstance(self._memory, _FusedPeriod):
            return super().run(count)
        uniforms = torch.from_numpy(self.uniforms.draw(count))
        self._memory.uniform[:, first:].copy_(uniforms)
        self._memory.steps(first)
        # Clones: the memory is written again.
        symbols = self._memory.symbols[:, first:].clone()
        return symbols.cpu().numpy(), self._memory.logs[:, first:].clone().cpu().numpy()

    def _by_periods(self, count: int) -> Drawn:
        if self._memory is None:
            self._memory = _ModulePeriod(self)
        memory = self._memory
        if self._graph is None:
            self._graph = memory.capture()
        uniforms = torch.from_numpy(self.uniforms.draw(count * self._period)).to(self.last.device)
        symbols = torch.empty_like(uniforms, dtype=torch.int64)
        logs = torch.empty_like(uniforms, dtype=torch.float32)
        for first in range(0, uniforms.shape[1], self._period):
            span = slice(first, first + self._period)
            memory.uniform.copy_(uniforms[:, span])
            self._graph.replay()
            symbols[:, span].copy_(memory.symbols)
            logs[:, span].copy_(memory.logs)
        return symbols.cpu().numpy(), logs.cpu().numpy()


class _FusedPeriod:
    """A period of fused steps on memory that stays put."""

    def __init__(self, engine: TorchEngine) -> None:
        model, self._sampling = engine.model, engine.sampling
        self._config, rows = model.config, len(engine.last)
        state = engine.state
        conditions = engine.conditions if state is None else state._asdict()
        zeros = torch.zeros_like(engine.last)
        with torch.no_grad():
            label, speaker = (conditions.get(name) for name in ("label", "speaker"))
            condition = model.condition(
                zeros if label is None else label, zeros if speaker is None else speaker
            )
        self._steps = DeviceDecoding(
            model.backbone,
            model.embedding,
            model.head,
            None if state is None else state.backbone,
            condition,
            rows,
            phases=model.phases,
        )
        self._period = self._config.backbone.total_pool
        device = engine.last.device
        self._last = engine.last.clone()
        drawn = len(engine.ended)
        self._ended = torch.zeros(drawn, dtype=torch.int8, device=device)
        self.uniform = torch.zeros(drawn, self._period, dtype=torch.float64, device=device)
        self.symbols = torch.zeros(drawn, self._period, dtype=torch.int64, device=device)
        self.logs = torch.zeros(drawn, self._period, device=device)
        self._scores = torch.zeros(rows, self._config.vocabulary, device=device)

    def keep(self, rows: Tensor) -> None:
        """Row i becomes row `rows[i]`, of all rows that are stepped."""
        self._last.copy_(self._last[rows])
        self._ended.copy_(self._ended[rows[: len(self._ended)]])
        self._steps.keep(rows)

    def steps(self, first: int) -> None:
        """The period's steps from place `first` on."""
        for place in range(first, self._period):
            self._step(place)

    def _step(self, place: int) -> None:
        config, sampling = self._config, self._sampling
        within = place % config.symbols_per_sample > 0
        allowed = config.end if within else None
        column = slice(place, place + 1)
        plain = sampling == Sampling(sampling.temperature)
        if plain and sampling.temperature > 0:
            self._steps.step(
                self._last,
                place,
                uniform=self.uniform[:, place],
                last=self._last,
                ended=self._ended,
                symbols=self.symbols[:, place],
                logs=self.logs[:, place],
                temperature=sampling.temperature,
                allowed=allowed,
                end=config.end,
            )
            return
        self._steps.step(self._last, place, scores=self._scores)
        uniform = self.uniform[:, place]
        symbols, logs = pick(self._scores, uniform, sampling, allowed, config.levels)
        if config.end is not None:
            over = self._ended != 0
            symbols, logs = symbols.masked_fill(over, config.end), logs.masked_fill(over, 0.0)
            self._ended.copy_(symbols == config.end)
        self._last.view(sampling.streams, -1).copy_(symbols)
        self.symbols[:, column].copy_(symbols[:, None])
        self.logs[:, column].copy_(logs[:, None])

    def capture(self) -> torch.cuda.CUDAGraph:
        """Record one period; recording runs nothing."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.steps(0)
        return graph


class _ModulePeriod:
    """A period of the model's own steps that begins and ends in the same memory."""

    def __init__(self, engine: TorchEngine) -> None:
        assert engine.state is not None
        self._engine = engine
        self._period = engine.model.config.backbone.total_pool
        # The state's own memory becomes the graph's: what it reads and what it leaves behind.
        engine.state = states.map_tensors(_own, engine.state)
        engine.last, engine.ended = _own(engine.last), _own(engine.ended)
        self._home = [*states.tensors(engine.state), engine.last, engine.ended]
        self.uniform = torch.zeros(
            len(engine.ended), self._period, dtype=torch.float64, device=engine.last.device
        )
        self.symbols = self.logs = torch.empty(0)

    def keep(self, rows: Tensor) -> None:
        """Row i becomes row `rows[i]`, of all rows that are stepped."""
        for tensor in self._home:
            tensor.copy_(tensor[rows[: len(tensor)]])

    def capture(self) -> torch.cuda.CUDAGraph:
        """Record one period, after a few that compile and allocate and are undone."""
        before = [tensor.clone() for tensor in self._home]
        aside(self._steps, _WARM_UP, self._engine.last.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.symbols, self.logs = self._steps()
        for tensor, value in zip(self._home, before, strict=True):
            tensor.copy_(value)
        return graph

    def _steps(self) -> tuple[Tensor, Tensor]:
        engine = self._engine
        kept = engine.state, engine.last, engine.ended, engine.position
        made = [engine.step(self.uniform[:, t]) for t in range(self._period)]
        after = [*states.tensors(engine.state), engine.last, engine.ended]
        for tensor, value in zip(self._home, after, strict=True):
            if tensor is not value:
                tensor.copy_(value)
        engine.state, engine.last, engine.ended, engine.position = kept
        symbols, logs = zip(*made, strict=True)
        return torch.stack(symbols, 1), torch.stack(logs, 1)


def _own(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)
