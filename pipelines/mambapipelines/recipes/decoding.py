"""Greedy decoding whose steps are recorded as a CUDA graph, for any causal language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mambacore import LanguageModel, state
from mambacore.errors import UsageError
from mambacore.mixers import AttentionState, reserve
from mambacore.recording import aside


class Decoder:
    """A batch of sequences that grow by the most likely token, from a prompt on.

    The state lives in tensors that never move: constant in size for recurrent mixers, reserved to
    `capacity` positions for attention. On a GPU several steps are recorded as one graph, so that
    neither Python nor a copy of the state for every step is timed.

    Args:
        model: of causal mixers, on its device and in its dtype.
        prompt: (rows, length >= 1) tokens.
        capacity: positions in all, prompt included.
        together: steps that are recorded as one.
        tokens_at_once: of the prompt, so that its activations fit beside the state.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompt: Tensor,
        capacity: int,
        *,
        together: int = 8,
        tokens_at_once: int = 1 << 17,
    ) -> None:
        if capacity < prompt.shape[1]:
            raise UsageError(f"capacity {capacity} is below the prompt's {prompt.shape[1]} tokens")
        self._model = model
        self._together = together
        self._graph: torch.cuda.CUDAGraph | None = None
        self._made: Tensor | None = None
        self._room = capacity - prompt.shape[1]
        self._last, self._state = self._read(prompt, capacity, tokens_at_once)

    @property
    def state_bytes(self) -> int:
        """Bytes that the state holds."""
        return state.nbytes(self._state)

    @torch.no_grad()
    def _read(self, prompt: Tensor, capacity: int, at_once: int) -> tuple[Tensor, Any]:
        rows = max(1, at_once // prompt.shape[1])
        last = torch.empty(len(prompt), 1, dtype=torch.int64, device=prompt.device)
        whole: Any = None
        for first in range(0, len(prompt), rows):
            part = slice(first, first + rows)
            hidden, carried = self._model.hidden(prompt[part])
            last[part] = self._model.logits(hidden[:, -1:]).argmax(dim=-1)
            assert carried is not None
            carried = tuple(_fixed(layer, capacity) for layer in carried)
            if whole is None:
                whole = state.map_tensors(lambda t: t.new_zeros(len(prompt), *t.shape[1:]), carried)
            for to, value in zip(state.tensors(whole), state.tensors(carried), strict=True):
                to[part] = value
        return last, whole

    @torch.no_grad()
    def prepare(self) -> None:
        """Record the graph, so that it is not timed; the sequences do not move on."""
        if not self._last.is_cuda or self._graph is not None:
            return
        if self._room < self._together:
            raise UsageError(f"there is room for {self._room} more tokens, not {self._together}")
        # What is beyond the position of a cache is never read, so its keys need no way back.
        moving = [self._last, *(t for layer in self._state for t in _moving(layer))]
        kept = [tensor.clone() for tensor in moving]

        def back() -> None:
            for to, value in zip(moving, kept, strict=True):
                to.copy_(value)

        aside(lambda: self._advance(1))
        back()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._made = self._advance(self._together)
        graph.replay()  # the first one is slower
        back()
        self._graph = graph

    @torch.no_grad()
    def run(self, count: int) -> Tensor:
        """(rows, count) next tokens; the first follows from the prompt alone.

        Raises:
            UsageError: more than the capacity holds, or, with a graph, no multiple of `together`.
        """
        if count > self._room:
            raise UsageError(f"there is room for {self._room} more tokens, not {count}")
        self._room -= count
        if self._graph is None:
            return self._advance(count)
        if count % self._together:
            raise UsageError(f"count must be a multiple of {self._together}, not {count}")
        made = []
        for _ in range(count // self._together):
            self._graph.replay()
            assert self._made is not None
            made.append(self._made.clone())
        return torch.cat(made, dim=1)

    def _advance(self, steps: int) -> Tensor:
        tokens, carried, made = self._last, self._state, []
        for _ in range(steps):
            made.append(tokens)
            hidden, carried = self._model.hidden(tokens, carried)
            tokens = self._model.logits(hidden[:, -1:]).argmax(dim=-1)
        out = torch.cat(made, dim=1)
        self._last.copy_(tokens)
        for to, value in zip(state.tensors(self._state), state.tensors(carried), strict=True):
            if to.data_ptr() != value.data_ptr():
                to.copy_(value)
        return out


def _fixed(layer: Any, capacity: int) -> Any:
    return reserve(layer, capacity) if isinstance(layer, AttentionState) else layer


def _moving(layer: Any) -> list[Tensor]:
    """What a step changes for good: everything but the keys and values of a reserved cache."""
    fields = getattr(layer, "_fields", ())
    if "keys" in fields:
        return [layer.position, layer.segment]
    return list(state.tensors(layer))
