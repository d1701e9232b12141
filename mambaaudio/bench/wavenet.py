"""WaveNet (van den Oord et al. 2016, arXiv 1609.03499), for comparison only.

Dilated causal convolutions of two taps with gated units, residual and skip connections; label and
speaker are added in every gate. It has `mambaaudio.WaveformModel`'s face: ``shift``, and
``forward(codes, state, label=, speaker=) -> (logits, state)``, the state being the past inputs
that the dilations reach, so that chunks give what the whole gives.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mambaaudio.model_config import WaveformConfig

_CONDITION = 16


class WaveNetState(NamedTuple):
    """Past inputs of each layer, (batch, channels, dilation), and the condition (batch, 16)."""

    past: list[Tensor]
    condition: Tensor | None


class WaveNet(nn.Module):
    """A WaveNet over the symbols of `config`; of its backbone settings, dropout alone is used.

    Args:
        config: code, rate and conditions, as of a `WaveformModel`.
        channels, skip: widths of the residual stream and of the skip connections.
        cycles, powers: `cycles` times the dilations 1, 2, ..., 2^(powers - 1).
    """

    causal = True

    def __init__(
        self,
        config: WaveformConfig,
        channels: int = 160,
        skip: int = 256,
        cycles: int = 3,
        powers: int = 12,
    ) -> None:
        super().__init__()
        if config.symbols_per_sample != 1:
            raise ValueError("this WaveNet takes codes of one symbol a sample")
        self.config = config
        self.dilations = [2**power for _ in range(cycles) for power in range(powers)]
        self.embedding = nn.Embedding(config.vocabulary + 1, channels)
        self.conditions = nn.ModuleList(
            nn.Embedding(len(names) + 1, _CONDITION) for names in (config.labels, config.speakers)
        )
        layers = len(self.dilations)
        self.gates = nn.ModuleList(
            nn.Conv1d(channels, 2 * channels, 2, dilation=d) for d in self.dilations
        )
        self.told = nn.ModuleList(nn.Linear(_CONDITION, 2 * channels, False) for _ in range(layers))
        self.out = nn.ModuleList(nn.Conv1d(channels, channels + skip, 1) for _ in range(layers))
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv1d(skip, skip, 1), nn.ReLU(), nn.Conv1d(skip, config.vocabulary, 1)
        )
        self._widths = (channels, skip)
        self._dropout = config.backbone.dropout

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def receptive_field(self) -> int:
        """Samples that a prediction can depend on."""
        return sum(self.dilations) + 1

    def shift(self, codes: Tensor, before: Tensor | None = None) -> Tensor:
        codes = codes.long()
        if before is None:
            before = codes.new_full(codes.shape[:1], self.config.start)
        return torch.cat([before[:, None].long(), codes[:, :-1]], dim=1)

    def forward(
        self,
        codes: Tensor,
        state: WaveNetState | None = None,
        *,
        label: Tensor | None = None,
        speaker: Tensor | None = None,
        segment_ids: Any = None,
    ) -> tuple[Tensor, WaveNetState]:
        if segment_ids is not None:
            raise ValueError("WaveNet cannot reset within a row")
        x = self.embedding(codes.long()).transpose(1, 2)
        condition = None if state is None else state.condition
        for table, number in zip(self.conditions, (label, speaker), strict=True):
            if number is not None:
                condition = table(number) if condition is None else condition + table(number)
        skips: Tensor | None = None
        past: list[Tensor] = []
        for number, dilation in enumerate(self.dilations):
            before = (
                x.new_zeros(x.shape[0], x.shape[1], dilation)
                if state is None
                else state.past[number].to(x.dtype)
            )
            known = torch.cat([before, x], dim=2)
            past.append(known[:, :, known.shape[2] - dilation :].clone())
            gates = self.gates[number](known)
            if condition is not None:
                gates = gates + self.told[number](condition)[:, :, None]
            tanh, sigmoid = gates.chunk(2, dim=1)
            gated = functional.dropout(
                torch.tanh(tanh) * torch.sigmoid(sigmoid), self._dropout, self.training
            )
            both = self.out[number](gated)
            added, skip = both.split(self._widths, dim=1)
            x = x + added
            skips = skip if skips is None else skips + skip
        assert skips is not None
        logits = self.head(skips * len(self.dilations) ** -0.5)
        return logits.transpose(1, 2), WaveNetState(past, condition)
