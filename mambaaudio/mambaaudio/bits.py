"""What each sample of a recording costs a model, in bits: streamed, exact, in constant memory.

A model is used here as floors are: ``Scorer(model).stream()(codes) -> bits``. Chunks of a
recording, given in order, cost what the whole costs, because the model carries its state.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambaaudio.floors import Codes, Stream
from mambacore.errors import UsageError

PRECISIONS = ("float32", "bfloat16", "float16")


class Model(Protocol):
    """`mambaaudio.WaveformModel`, or anything with its face."""

    @property
    def config(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    def shift(self, codes: Tensor, before: Tensor | None = None) -> Tensor: ...

    def __call__(
        self, codes: Tensor, state: Any = None, **conditions: Any
    ) -> tuple[Tensor, Any]: ...


class Scorer:
    """Bits per sample of a model.

    Args:
        model: in evaluation mode; its device is used.
        precision: "float32", or "bfloat16" or "float16" autocast, faster on a GPU.
        chunk: samples computed at a time; by default 2^17 on a GPU and 2^14 elsewhere.

    Raises:
        UsageError: an unknown precision, a chunk below 1.
    """

    name = "model"

    def __init__(
        self, model: Model, *, precision: str = "float32", chunk: int | None = None
    ) -> None:
        if precision not in PRECISIONS:
            raise UsageError(f"precision {precision!r}: choose from {', '.join(PRECISIONS)}")
        if chunk is not None and chunk < 1:
            raise UsageError(f"chunk is {chunk} samples; give at least 1")
        self.model = model
        self.device = model.device
        self.chunk = chunk or (1 << 17 if self.device.type == "cuda" else 1 << 14)
        self.precision = precision
        self._each = model.config.symbols_per_sample

    def stream(self, label: int = 0, speaker: int = 0) -> Stream:
        """A function of consecutive chunks of one recording's codes.

        Args:
            label, speaker: the recording's numbers, 0 for "not said".
        """
        state: Any = None
        before: Tensor | None = None
        conditions = self._conditions([label], [speaker])

        def feed(codes: Codes) -> NDArray[np.float64]:
            nonlocal state, before
            if len(codes) % self._each:
                raise UsageError(f"{len(codes)} symbols are no whole number of samples")
            out = [np.empty(0)]
            for first in range(0, len(codes), self.chunk * self._each):
                part = codes[None, first : first + self.chunk * self._each]
                symbols = self._tensor(part)
                told = conditions if state is None else {}
                nats, state = self._nats(symbols, state, before, told)
                before = symbols[:, -1]
                out.append(self._per_sample(nats)[0])
            return np.concatenate(out)

        return feed

    def batch(
        self,
        recordings: Sequence[Codes],
        labels: Sequence[int] | None = None,
        speakers: Sequence[int] | None = None,
    ) -> list[NDArray[np.float64]]:
        """Bits of every sample of short recordings, computed side by side.

        Rows are padded at the right, which a causal model does not hear. As many go together as
        `chunk` samples hold; one that is longer is streamed.
        """
        labels = [0] * len(recordings) if labels is None else labels
        speakers = [0] * len(recordings) if speakers is None else speakers
        out: list[NDArray[np.float64]] = [np.empty(0)] * len(recordings)
        limit = self.chunk * self._each
        group: list[int] = []
        for place in sorted(range(len(recordings)), key=lambda i: len(recordings[i])):
            size = len(recordings[place])
            if size > limit:
                out[place] = self.stream(labels[place], speakers[place])(recordings[place])
                continue
            if group and size * (len(group) + 1) > limit:
                self._side_by_side(group, recordings, labels, speakers, out)
                group = []
            if size:
                group.append(place)
        if group:
            self._side_by_side(group, recordings, labels, speakers, out)
        return out

    def _side_by_side(
        self,
        group: Sequence[int],
        recordings: Sequence[Codes],
        labels: Sequence[int],
        speakers: Sequence[int],
        out: list[NDArray[np.float64]],
    ) -> None:
        width = len(recordings[group[-1]])
        rows = np.zeros((len(group), width), np.int64)
        for row, place in enumerate(group):
            rows[row, : len(recordings[place])] = recordings[place]
        told = self._conditions([labels[i] for i in group], [speakers[i] for i in group])
        nats, _ = self._nats(self._tensor(rows), None, None, told)
        cost = self._per_sample(nats)
        for row, place in enumerate(group):
            out[place] = cost[row, : len(recordings[place]) // self._each]

    def _conditions(self, labels: Sequence[int], speakers: Sequence[int]) -> dict[str, Tensor]:
        return {
            "label": torch.tensor(labels, device=self.device),
            "speaker": torch.tensor(speakers, device=self.device),
        }

    def _tensor(self, codes: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(codes.astype(np.int64)).to(self.device)

    @torch.no_grad()
    def _nats(
        self, symbols: Tensor, state: Any, before: Tensor | None, told: dict[str, Tensor]
    ) -> tuple[Tensor, Any]:
        """(B, L) costs of symbols, and the state after them."""
        cast: Any = contextlib.nullcontext()
        if self.precision != "float32":
            cast = torch.autocast(self.device.type, getattr(torch, self.precision))
        with cast:
            logits, state = self.model(self.model.shift(symbols, before), state, **told)
        chosen = logits.float().log_softmax(-1).gather(-1, symbols[..., None])
        return -chosen[..., 0], state

    def _per_sample(self, nats: Tensor) -> NDArray[np.float64]:
        cost = nats.double().cpu().numpy() / math.log(2)
        return cost.reshape(len(cost), -1, self._each).sum(2)
