"""The waveform model: symbols in, scores of the next symbol out.

    x = embedding(symbols) + condition(label, speaker)     (B, L) -> (B, L, d)
    h = backbone(x)                                        (B, L, d) -> (B, L, d)
    logits = head(h)                                       (B, L, d) -> (B, L, V)

B: batch, L: length in symbols, d: width of the fastest level, V: `config.vocabulary`.
"""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mambaaudio.model_config import WaveformConfig
from mambacore.errors import UsageError
from mambacore.multiscale import MultiScaleBackbone


class WaveformState(NamedTuple):
    """What is carried between chunks: the backbone's state and the conditions, (batch,) each."""

    backbone: Any
    label: Tensor
    speaker: Tensor


class WaveformModel(nn.Module):
    """Scores every next symbol of a coded recording.

    ``forward(codes, state=None, *, label=None, speaker=None, segment_ids=None) -> (logits,
    state)``: logits[:, t] scores the symbol that follows codes[:, t], given codes[:, :t + 1] and
    what the state remembers. A recording begins with the input `config.start`, so with
    ``inputs = model.shift(codes)`` the logits stand beside the symbols that they score::

        logits, state = model(model.shift(codes))          # logits[:, t] scores codes[:, t]
        logits, state = model(model.shift(more, codes[:, -1]), state)      # goes on

    The whole sequence, any chunks of it and single steps give the same logits, to rounding; a
    step runs only the levels that are due. The conditions are kept in the state; given together
    with a state they replace it.

    Args:
        config: code, rate, backbone and conditions.

    >>> import torch
    >>> from mambacore.multiscale import MultiScaleConfig
    >>> config = WaveformConfig(8000, backbone=MultiScaleConfig(d_model=8, pools=(2,), n_layer=1))
    >>> model = WaveformModel(config)
    >>> codes = torch.randint(256, (1, 10), dtype=torch.uint8)
    >>> logits, state = model(model.shift(codes))
    >>> logits.shape
    torch.Size([1, 10, 256])
    """

    causal = True

    def __init__(self, config: WaveformConfig) -> None:
        super().__init__()
        self.config = config
        d_model, inputs = config.backbone.d_model, config.vocabulary + 1
        self.phases = config.symbols_per_sample
        # Symbols of a sample's several parts have tables of their own, one after the other.
        self.embedding = nn.Embedding(self.phases * inputs, d_model)
        self._smooth_embedding(inputs)
        self.label_embedding = _conditions(config.labels, d_model)
        self.speaker_embedding = _conditions(config.speakers, d_model)
        self.backbone = MultiScaleBackbone(config.backbone)
        self.head = nn.Linear(d_model, self.phases * config.vocabulary)
        nn.init.zeros_(self.head.bias)

    @torch.no_grad()
    def _smooth_embedding(self, inputs: int) -> None:
        """Neighbouring symbols begin alike: random waves over the code, of size 1."""
        weight = self.embedding.weight.view(self.phases, inputs, -1)
        symbols = inputs - 1 - self.config.end_event
        frequency = torch.randn(weight.shape[-1]) * 2
        phase = torch.rand(weight.shape[-1])
        place = torch.arange(symbols)[:, None] / symbols
        waves = math.sqrt(2) * torch.cos(2 * math.pi * (frequency * place + phase))
        weight[:, :symbols] = waves + 0.1 * torch.randn_like(waves)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def shift(self, codes: Tensor, before: Tensor | None = None) -> Tensor:
        """The inputs whose logits score `codes`: these, one later, behind the start.

        Args:
            codes: (B, L) integers.
            before: (B,) the symbols just before codes[:, 0], to go on with a recording; None
                begins one.

        Returns:
            (B, L) int64.
        """
        codes = codes.long()
        if before is None:
            before = codes.new_full(codes.shape[:1], self.config.start)
        return torch.cat([before[:, None].long(), codes[:, :-1]], dim=1)

    def forward(
        self,
        codes: Tensor,
        state: WaveformState | None = None,
        *,
        label: Tensor | None = None,
        speaker: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> tuple[Tensor, WaveformState]:
        """Logits (B, L, V) of the symbol after each position, and the state.

        Args:
            codes: (B, L >= 1) integers of any dtype, 0 .. `config.start`.
            state: what an earlier call returned.
            label, speaker: (B,) integers, 0 for "not said"; by default the state's, else 0.
            segment_ids: (B, L) integers; the state is reset where they change. Segments start at
                multiples of `config.backbone.total_pool`, with the input `config.start`.

        Raises:
            UsageError: a shape or dtype that does not fit; on the CPU also a value out of range.
        """
        first = self._phase(state)
        h, state = self.hidden(codes, state, label=label, speaker=speaker, segment_ids=segment_ids)
        return self.logits(h, first), state

    def hidden(
        self,
        codes: Tensor,
        state: WaveformState | None = None,
        *,
        label: Tensor | None = None,
        speaker: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> tuple[Tensor, WaveformState]:
        """What the head reads, (B, L, d), and the state; arguments as for `forward`."""
        if codes.dim() != 2 or codes.is_floating_point() or codes.shape[1] < 1:
            raise UsageError(
                "codes must be (batch, length >= 1) integers, not "
                f"{tuple(codes.shape)} of {codes.dtype}"
            )
        config = self.config
        _check_range("code", codes, config.start)
        kept = (None, None, None) if state is None else state
        label = _condition("label", label, kept[1], codes, len(config.labels))
        speaker = _condition("speaker", speaker, kept[2], codes, len(config.speakers))
        index = codes.long()
        if self.phases > 1:
            index = index + self._phases(self._phase(state), codes) * (config.vocabulary + 1)
        x = self.embedding(index)
        condition = self.condition(label, speaker)
        if condition is not None:
            x = x + condition[:, None]
        h, backbone = self.backbone(x, kept[0], segment_ids=segment_ids)
        return h, WaveformState(backbone, label, speaker)

    def condition(self, label: Tensor | None, speaker: Tensor | None) -> Tensor | None:
        """(B, d) what label and speaker numbers (B,) add to every input; None without any."""
        added = None
        for table, number in ((self.label_embedding, label), (self.speaker_embedding, speaker)):
            if table is not None and number is not None:
                added = table(number) if added is None else added + table(number)
        return added

    def logits(self, h: Tensor, phase: int = 0) -> Tensor:
        """Scores (B, L, V) of hidden vectors (B, L, d).

        phase: part of a sample that the first of them scores; only for codes of several symbols
            a sample.
        """
        if self.phases == 1:
            return self.head(h)
        scores = self.head(h).unflatten(-1, (self.phases, self.config.vocabulary))
        index = self._phases(phase, h).view(1, -1, 1, 1).expand(h.shape[0], -1, 1, scores.shape[-1])
        return scores.gather(2, index)[:, :, 0]

    def _phase(self, state: WaveformState | None) -> int:
        """Part of a sample that the next input scores."""
        return 0 if state is None else state.backbone.pending.shape[1] % self.phases

    def _phases(self, first: int, like: Tensor) -> Tensor:
        return (torch.arange(like.shape[1], device=like.device) + first) % self.phases

    def save_pretrained(self, folder: str | PathLike[str]) -> Path:
        """Write `config.json` and `model.safetensors`, all of it or nothing.

        An existing model folder is replaced; a folder that holds anything else is refused.
        """
        from mambaaudio.model_files import save_model

        return save_model(self, Path(folder))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> WaveformModel:
        """Read a model folder, or the run folder that holds one as `model/`, in evaluation mode.

        Args:
            folder: where `config.json` and `model.safetensors` are.
            device: where the model shall run.
            dtype: of the weights (those that stay float32 excepted); as stored by default.

        Raises:
            DataError: no model there, another kind of model, an unknown or missing setting, or
                weights that do not fit; the message names file and entry.
        """
        from mambaaudio.model_files import load_model

        return load_model(Path(folder), device=device, dtype=dtype)


def _conditions(names: tuple[str, ...], d_model: int) -> nn.Embedding | None:
    if not names:
        return None
    table = nn.Embedding(len(names) + 1, d_model)
    with torch.no_grad():
        table.weight.mul_(0.5)
    return table


def _condition(
    name: str, given: Tensor | None, kept: Tensor | None, codes: Tensor, count: int
) -> Tensor:
    """(B,) int64 numbers of a condition."""
    if given is None and kept is not None:
        if kept.shape[0] != codes.shape[0]:
            raise UsageError(f"the state is of {kept.shape[0]} rows, codes of {codes.shape[0]}")
        return kept
    if given is None:
        return codes.new_zeros(codes.shape[0], dtype=torch.int64)
    if tuple(given.shape) != (codes.shape[0],) or given.is_floating_point():
        raise UsageError(
            f"{name} must be one integer a row, ({codes.shape[0]},), not {tuple(given.shape)} of "
            f"{given.dtype}"
        )
    _check_range(name, given, count)
    return given.to(codes.device, torch.int64)


def _check_range(name: str, values: Tensor, highest: int) -> None:
    # On a GPU the check would wait for the device; there the embedding itself fails.
    if values.device.type != "cpu" or torch.compiler.is_compiling() or not values.numel():
        return
    low, high = (int(value) for value in values.aminmax())
    if low < 0 or high > highest:
        raise UsageError(
            f"{name} {low if low < 0 else high} is out of range; this model takes 0 to {highest}"
        )
