"""A waveform model's training: loss, validation bits, hidden labels, optimiser."""

from __future__ import annotations

import math
from functools import partial

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional

from mambaaudio.model import WaveformModel

from ..optimizers import adamw
from ..options import OptimizerOptions
from ..replay import ReplayedLoss
from .data import Batch


class WaveformLoss(nn.Module):
    """``(codes, mask, counted, label, speaker) -> (loss, bits)`` of a training batch.

    Args:
        model: the model.
        label_dropout, speaker_dropout: probability of hiding a row's label or speaker.
        input_noise: largest standard deviation, in steps of the code, of noise on the inputs; the
            targets stay clean.
        spread_penalty, jump_limit: add to the loss the means of spread_penalty d^2 and of
            (d / jump_limit)^4, d being the distance, in steps of the code, of what is predicted
            from what comes. The best prediction falls from p_k to about p_k / (1 +
            spread_penalty d_k^2 + (d_k / jump_limit)^4), d_k being a symbol's distance from the
            mean: the square makes it narrower, the fourth power takes clicks alone. 0: nothing.

    Noise, penalty and limit are for codes of one symbol a sample.
    """

    def __init__(
        self,
        model: WaveformModel,
        label_dropout: float = 0.0,
        speaker_dropout: float = 0.0,
        input_noise: float = 0.0,
        spread_penalty: float = 0.0,
        jump_limit: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self._dropout = (label_dropout, speaker_dropout)
        self._noise, self._spread, self._limit = input_noise, spread_penalty, jump_limit

    def forward(
        self, codes: Tensor, mask: Tensor, counted: Tensor, label: Tensor, speaker: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean nats a symbol, and bits a real sample without a gradient."""
        label, speaker = _hidden(label, self._dropout[0]), _hidden(speaker, self._dropout[1])
        heard = self._noisy(codes, counted) if self._noise else codes
        logits = logits_of(self.model, heard, label, speaker)
        nats = nats_of(logits, codes)
        loss = (nats * mask).sum() / mask.sum()
        # A row of a clip's tail alone has no real samples.
        real = counted.sum().clamp(min=1)
        if self._spread or self._limit:
            loss = loss + (self._far(logits, codes) * counted).sum() / real
        bits = (nats.detach() * counted).sum() / real * bits_per_sample(self.model)
        return loss, bits

    def _noisy(self, codes: Tensor, counted: Tensor) -> Tensor:
        """Codes of the real samples with Gaussian noise, whose size each row draws: the square of
        a uniform number times the largest, so that most rows are nearly clean."""
        size = self._noise * torch.rand(codes.shape[0], 1, device=codes.device).square()
        moved = codes + (size * torch.randn(codes.shape, device=codes.device)).round()
        moved = moved.clamp(0, self.model.config.levels - 1).to(codes.dtype)
        return torch.where(counted, moved, codes)

    def _far(self, logits: Tensor, codes: Tensor) -> Tensor:
        """(B, L) mean cost of what is predicted, provided that it is no end event: it neither
        favours ends nor discourages them."""
        count = self.model.config.levels
        levels = torch.arange(count, device=codes.device, dtype=torch.float32)
        away = (levels - codes[..., None]).square()
        cost = self._spread * away
        if self._limit:
            cost = cost + (away / self._limit**2).square()
        return (logits[..., :count].float().softmax(-1) * cost).sum(-1)


def logits_of(model: WaveformModel, heard: Tensor, label: Tensor, speaker: Tensor) -> Tensor:
    """(B, L, V) scores of every symbol, given those heard before it."""
    return model(model.shift(heard), label=label, speaker=speaker)[0]


def nats_of(logits: Tensor, codes: Tensor) -> Tensor:
    """(B, L) cross entropy of every symbol, padding included."""
    flat = logits.flatten(0, 1).float()
    nats = functional.cross_entropy(flat, codes.long().flatten(), reduction="none")
    return nats.view_as(codes)


def bits_per_sample(model: WaveformModel) -> float:
    """Nats a symbol to bits a sample."""
    return model.config.symbols_per_sample / math.log(2)


class WaveformModule(LightningModule):
    """Trains a `mambaaudio.WaveformModel` to predict every next symbol.

    The loss is the cross entropy in nats, a mean over all symbols but padding: a clip's tail of
    silence and its end event train, too. ``bits`` is the cross entropy in bits of real samples
    alone (of all symbols that make one), which is what validation and reports compare.

    Args:
        model: the model.
        optimizer: AdamW's settings; the learning rate's schedule is the run's.
        settings: of the training loss, see `WaveformLoss`.
    """

    def __init__(
        self, model: WaveformModel, optimizer: OptimizerOptions, **settings: float
    ) -> None:
        super().__init__()
        self.model = model
        self._optimizer = optimizer
        self.replayed = ReplayedLoss(partial(WaveformLoss, model, **settings))
        self._sums = torch.zeros(4, dtype=torch.float64)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Loss and bits of a batch."""
        loss, bits = self.replayed(*batch)
        return {"loss": loss, "bits": bits}

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self._sums = torch.zeros(4, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add up nats and symbols, of all and of real samples; labels and speakers are told."""
        logits = logits_of(self.model, batch.codes, batch.label, batch.speaker)
        nats = nats_of(logits, batch.codes)
        parts = []
        for chosen in (batch.mask, batch.counted):
            parts += [(nats * chosen).sum(dtype=torch.float64), chosen.sum().double()]
        self._sums += torch.stack(parts)

    def on_validation_epoch_end(self) -> None:
        """``val/loss`` and ``val/bits`` over all ranks."""
        sums = self._sums
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
            assert isinstance(sums, Tensor)
        self.log_dict(
            {
                "val/loss": sums[0] / sums[1],
                "val/bits": sums[2] / sums[3] * bits_per_sample(self.model),
            }
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW without weight decay on norms, biases, the state spaces' A, D and steps."""
        return adamw(self.model, self._optimizer, scaled=self.trainer.precision == "16-mixed")


def _hidden(numbers: Tensor, probability: float) -> Tensor:
    """Some of the numbers turned into 0, none; the run seeds the random numbers of each step."""
    if probability <= 0:
        return numbers
    keep = torch.rand(numbers.shape, device=numbers.device) >= probability
    return numbers * keep
