"""What steps a waveform model: plain torch anywhere, a compiled loop on the CPU, a CUDA graph.

An engine continues one state of several rows; all of them give the same symbols from the same
uniform numbers, but for rounding of the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambaaudio.model import WaveformModel, WaveformState
from mambaaudio.sampling import Sampling, Uniforms, pick
from mambacore import state as states
from mambacore.errors import UsageError

ENGINES = ("auto", "compiled", "graph", "graph-modules", "torch")
Drawn = tuple[NDArray[np.int64], NDArray[np.float32]]


class Draws(Protocol):
    """Continues rows of symbols."""

    def run(self, count: int) -> Drawn:
        """The next symbols (rows, count) and their log-probabilities in nats.

        A row that has met the end event goes on with end events of log-probability 0.
        """
        ...


class Engine(Draws, Protocol):
    """Steps a model.

    With guidance it is given two rows for each that it continues, those that are not told the
    condition last.
    """

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Row i goes on from the state of row `rows[i]`, under the same conditions; (rows,).

        Where the slowest level begins a frame: engines may run ahead to there.
        """
        ...


class TorchEngine:
    """The model's own step, one call a symbol, on any device and for any mixer.

    Args:
        model: in evaluation mode.
        state: what the rows have heard; with `last` = `config.start` a state of None begins.
        last: (rows,) the symbol that is fed next.
        uniforms, sampling: of each row; see `Engine` for guidance.
        label, speaker: (rows,) conditions, for a state of None.
    """

    def __init__(
        self,
        model: WaveformModel,
        state: WaveformState | None,
        last: Tensor,
        uniforms: Uniforms,
        sampling: Sampling,
        *,
        label: Tensor | None = None,
        speaker: Tensor | None = None,
    ) -> None:
        self.model, self.state, self.last = model, state, last
        self.uniforms, self.sampling = uniforms, sampling
        self.conditions = {"label": label, "speaker": speaker} if state is None else {}
        self.ended = torch.zeros_like(last[: len(last) // sampling.streams], dtype=torch.bool)
        self.position = 0 if state is None else state.backbone.pending.shape[1]

    def step(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """One symbol a row, (rows,), and its log-probability; `uniform` (rows,) float64."""
        config = self.model.config
        logits, self.state = self.model(self.last[:, None], self.state, **self.conditions)
        self.conditions = {}
        # A sample of several parts can only end before its first one.
        within = self.position % config.symbols_per_sample > 0
        self.position += 1
        allowed = config.end if within else None
        symbols, logs = pick(logits[:, 0], uniform, self.sampling, allowed, config.levels)
        if config.end is not None:
            symbols = symbols.masked_fill(self.ended, config.end)
            logs = logs.masked_fill(self.ended, 0.0)
            self.ended = self.ended | (symbols == config.end)
        self.last = symbols.expand(self.sampling.streams, -1).flatten()
        return symbols, logs

    def keep(self, rows: NDArray[np.int64]) -> None:
        """See `Engine`."""
        each = torch.from_numpy(self.sampling.stepped(rows)).to(self.last.device)
        self.state, self.last = states.select(self.state, each), self.last[each]
        self.ended = self.ended[each[: len(rows)]]

    @torch.no_grad()
    def run(self, count: int) -> Drawn:
        """See `Engine`."""
        uniforms = torch.from_numpy(self.uniforms.draw(count)).to(self.last.device)
        made = [self.step(uniforms[:, t]) for t in range(count)]
        symbols = torch.stack([pair[0] for pair in made], 1)
        logs = torch.stack([pair[1] for pair in made], 1)
        return symbols.cpu().numpy(), logs.cpu().numpy()


class CompiledEngine:
    """The compiled loop of `mambacore.decoding`: float32 models on the CPU, a thread a row."""

    def __init__(
        self,
        model: WaveformModel,
        state: WaveformState | None,
        last: Tensor,
        uniforms: Uniforms,
        sampling: Sampling,
        *,
        label: Tensor | None = None,
        speaker: Tensor | None = None,
    ) -> None:
        from mambacore.decoding import DecodingPlan

        self._uniforms, self._sampling = uniforms, sampling
        self._plan = DecodingPlan(
            model.backbone,
            model.embedding,
            model.head,
            phases=model.phases,
            end=model.config.end,
        )
        if state is not None:
            label, speaker = state.label, state.speaker
        with torch.no_grad():
            condition = model.condition(label, speaker)
        if state is None:
            self._streams = self._plan.start(len(last), last, condition)
        else:
            self._streams = self._plan.resume(state.backbone, last, condition)

    def keep(self, rows: NDArray[np.int64]) -> None:
        """See `Engine`."""
        each = self._sampling.stepped(rows)
        for values in self._streams:
            values[:] = values[each]

    def run(self, count: int) -> Drawn:
        """See `Engine`."""
        chosen = self._sampling
        return self._plan.generate(
            self._streams,
            self._uniforms.draw(count),
            temperature=chosen.temperature,
            top_k=chosen.top_k,
            top_p=chosen.top_p,
            guidance=chosen.guidance,
            core_temperature=chosen.core_temperature,
        )


def choose(model: WaveformModel, wanted: str) -> Callable[..., Engine]:
    """The engine by name; "auto" takes the fastest that can run the model.

    "graph-modules" is "graph" without fused steps.

    Raises:
        UsageError: an unknown name, or an engine that cannot run this model, and why.
    """
    from mambacore.decoding import why_not

    if wanted not in ENGINES:
        raise UsageError(f"engine {wanted!r} is not one of {', '.join(ENGINES)}")
    on_gpu = model.device.type == "cuda"
    if wanted.startswith("graph") and not on_gpu:
        raise UsageError(f"engine {wanted!r} needs a model on a CUDA GPU, not on {model.device}")
    if wanted.startswith("graph") or (wanted == "auto" and on_gpu):
        from mambaaudio.graph import GraphEngine

        return partial(GraphEngine, fused=wanted != "graph-modules")
    reason = why_not(model.backbone)
    if wanted == "compiled" and reason:
        raise UsageError(f"engine 'compiled' cannot run this model: {reason}")
    return TorchEngine if wanted == "torch" or reason else CompiledEngine


def place_in_period(state: WaveformState | None) -> int:
    """Steps since the slowest level's last frame began."""
    place, unit = 0, 1
    level = None if state is None else state.backbone
    while level is not None and hasattr(level, "pending"):
        place += level.pending.shape[1] * unit
        unit *= level.frame.shape[1]
        level = level.below
    return place
