"""The language model's training: loss in chunks, validation figures, optimiser."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from mambabio.alphabet import PAD
from mambabio.language import SCORED
from mambacore.language_model import LanguageModel
from mambacore.losses import LossSum, chunked_cross_entropy

from ..optimizers import adamw
from ..options import OptimizerOptions
from ..replay import ReplayedLoss
from ..state_carry import carried_loss
from .data import Batch

BITS = 1 / math.log(2)


class LanguageLoss(nn.Module):
    """``(tokens, targets) -> (nats of all scored bases,)`` of a batch that is read whole."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor]:
        """The sum, not the mean: how many count is for all ranks to say."""
        hidden, _ = self.model.hidden(tokens)
        mask = targets < SCORED
        return (chunked_cross_entropy(hidden, self.model.head_weight, targets, mask=mask).total,)


class LanguageModule(LightningModule):
    """Trains a `mambacore.LanguageModel` to predict the next base.

    loss = nats a scored base, the mean over all ranks' scored bases: each rank gives its sum
    divided by the mean count of a rank, so that the average over ranks is the mean over bases,
    however the bases are dealt out.

    Args:
        model: causal, with DNA's vocabulary.
        optimizer: AdamW's settings; the learning rate's schedule is the run's.
        segment: bases read at a time, the state handed over to the next; None reads windows
            whole. In validation, too.
        carry_gradient: through how many segments a loss is differentiated.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: OptimizerOptions,
        *,
        segment: int | None = None,
        carry_gradient: int = 1,
    ) -> None:
        super().__init__()
        self.model = model
        self._optimizer = optimizer
        self._segment = segment
        self._carry_gradient = carry_gradient
        self.replayed = ReplayedLoss(partial(LanguageLoss, model))
        self._sums = torch.zeros(2, dtype=torch.float64)

    def loss_sum(self, batch: Batch, state: Any = None) -> tuple[LossSum, Any]:
        """Nats and bases of a batch (or a stretch of one), and the state after it."""
        hidden, state = self.model.hidden(batch.tokens, state, segment_ids=batch.segments)
        loss = chunked_cross_entropy(
            hidden, self.model.head_weight, batch.targets, mask=batch.targets < SCORED
        )
        return loss, state

    def total(self, batch: Batch) -> Tensor:
        """Nats of a batch, in segments where that is asked for."""
        size = self._segment or batch.tokens.shape[1]

        def segment_loss(number: int, state: Any) -> tuple[Tensor, Any]:
            (total, _), state = self.loss_sum(batch.part(number * size, (number + 1) * size), state)
            return total, state

        segments = -(-batch.tokens.shape[1] // size)
        parameters = list(self.model.parameters())
        return carried_loss(segment_loss, segments, self._carry_gradient, parameters)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Loss, also in bits."""
        whole = batch.segments is None and self._segment is None
        total = self.replayed(batch.tokens, batch.targets)[0] if whole else self.total(batch)
        loss = total / self._count_a_rank(batch)
        figures = {"loss": loss, "bits": loss.detach() * BITS}
        if batch.segments is not None:
            figures["padding"] = (batch.tokens == PAD).float().mean()
        return figures

    def _count_a_rank(self, batch: Batch) -> Tensor:
        """Scored bases of this step, the mean over ranks, at least 1."""
        count = (batch.targets < SCORED).sum().float()
        if self.trainer.world_size > 1:
            count = self.trainer.strategy.reduce(count, reduce_op="mean")
            assert isinstance(count, Tensor)
        return count.clamp(min=1)

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self._sums = torch.zeros(2, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count nats and bases."""
        counted = (batch.targets < SCORED).sum()
        self._sums += torch.stack([self.total(batch).double(), counted.double()])

    def on_validation_epoch_end(self) -> None:
        """``val/loss`` (nats), ``val/bits`` and ``val/perplexity`` a base, over all ranks."""
        sums = self._sums
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
            assert isinstance(sums, Tensor)
        loss = sums[0] / sums[1].clamp(min=1)
        self.log_dict({"val/loss": loss, "val/bits": loss * BITS, "val/perplexity": loss.exp()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW without weight decay on norms, biases, A_log, D and the delta bias."""
        return adamw(self.model, self._optimizer, scaled=self.trainer.precision == "16-mixed")
