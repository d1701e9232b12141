"""The species classifier's training: loss, validation figures, optimiser."""

from __future__ import annotations

from functools import partial

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional

from mambabio.alphabet import PAD
from mambabio.classifier import SpeciesClassifier

from ..optimizers import adamw
from ..options import OptimizerOptions
from ..replay import ReplayedLoss
from .data import Batch, Packed


class SpeciesLoss(nn.Module):
    """``(tokens, labels) -> (loss, accuracy)`` of a training batch."""

    def __init__(self, model: SpeciesClassifier, smoothing: float) -> None:
        super().__init__()
        self.model = model
        self._smoothing = smoothing

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Training windows are never padded."""
        logits = self.model(tokens)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=self._smoothing)
        return loss, (logits.argmax(1) == labels).float().mean()


class SpeciesModule(LightningModule):
    """Trains a `mambabio.SpeciesClassifier`.

    loss = cross entropy with label smoothing; in validation, the mean over classes of the mean
    over a class's windows, so that rare classes count as much as common ones.

    Args:
        model: the classifier.
        optimizer: AdamW's settings; the learning rate's schedule is the run's.
        label_smoothing: in [0, 1).
    """

    def __init__(
        self, model: SpeciesClassifier, optimizer: OptimizerOptions, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.model = model
        self._optimizer = optimizer
        self._smoothing = label_smoothing
        self.replayed = ReplayedLoss(partial(SpeciesLoss, model, label_smoothing))
        self._sums = torch.zeros(len(model.labels), 3, dtype=torch.float64)

    def training_step(self, batch: Batch | Packed, batch_idx: int) -> dict[str, Tensor]:
        """Loss and accuracy of a batch."""
        if isinstance(batch, Packed):
            return self._packed_step(batch)
        loss, accuracy = self.replayed(batch.tokens, batch.labels)
        return {"loss": loss, "accuracy": accuracy}

    def _packed_step(self, batch: Packed) -> dict[str, Tensor]:
        """Each segment of each row counts once, however long it is."""
        real = batch.labels >= 0
        logits = self.model.forward_packed(batch.tokens, batch.segments, batch.labels.shape[1])
        loss = functional.cross_entropy(
            logits.float().flatten(0, 1),
            batch.labels.flatten(),
            label_smoothing=self._smoothing,
            ignore_index=-1,
        )
        right = (logits.argmax(-1) == batch.labels) & real
        return {
            "loss": loss,
            "accuracy": right.sum() / real.sum(),
            "padding": (batch.tokens == PAD).float().mean(),
        }

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self._sums = torch.zeros(len(self.model.labels), 3, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count windows, right answers and loss by class."""
        tokens, lengths, labels = batch
        short = bool((lengths < tokens.shape[1]).any())
        logits = self.model(tokens, lengths if short else None).float()
        loss = functional.cross_entropy(logits, labels, reduction="none")
        right = logits.argmax(1) == labels
        figures = torch.stack([torch.ones_like(loss), right.to(loss.dtype), loss], 1)
        self._sums.index_add_(0, labels, figures.double())

    def on_validation_epoch_end(self) -> None:
        """``val/loss``, ``val/accuracy`` and ``val/macro_accuracy`` over all ranks."""
        sums = self._sums
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
            assert isinstance(sums, Tensor)
        present = sums[sums[:, 0] > 0]
        by_class = present[:, 1:] / present[:, :1]
        self.log_dict(
            {
                "val/loss": by_class[:, 1].mean(),
                "val/accuracy": present[:, 1].sum() / present[:, 0].sum(),
                "val/macro_accuracy": by_class[:, 0].mean(),
            }
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW without weight decay on norms, biases, A_log, D and the delta bias."""
        return adamw(self.model, self._optimizer, scaled=self.trainer.precision == "16-mixed")
