"""The species classifier: nucleotides, Mamba backbone, pooling, one score a class.

    x = embedding(tokens)                 (B, L)    -> (B, L, d)
    h = backbone(x)                       (B, L, d) -> (B, L, d), final norm included
    p = pooling(h)                        (B, L, d) -> (B, d), real positions only
    logits = head(p)                      (B, d)    -> (B, classes)

B: batch, L: length in bases, d: d_model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mambabio.alphabet import COMPLEMENT, PAD, VOCAB_SIZE
from mambabio.classifier_config import ClassifierConfig
from mambacore.backbone import Backbone
from mambacore.errors import UsageError
from mambacore.heads import Pooling

if TYPE_CHECKING:
    from mambabio.classify import Prediction


class SpeciesClassifier(nn.Module):
    """Scores nucleotide sequences against the classes it was trained on.

    Usable alone, without Lightning: read one with `from_pretrained`, then `classify` a file or
    call it on token ids (`mambabio.encode`).

    Args:
        config: sizes, labels, trained window, and what prediction needs to know.

    >>> import torch
    >>> from mambacore.config import ModelConfig
    >>> config = ClassifierConfig(ModelConfig(d_model=16, n_layer=1), labels=("ape", "bat"))
    >>> model = SpeciesClassifier(config)
    >>> model(torch.zeros(3, 100, dtype=torch.uint8)).shape
    torch.Size([3, 2])
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        d_model = config.model.d_model
        self.embedding = nn.Embedding(VOCAB_SIZE, d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.backbone = Backbone(config.model)
        self.pooling = Pooling(config.pooling)
        self.dropout = nn.Dropout(config.head_dropout)
        self.head = nn.Linear(d_model, len(config.labels))
        self.register_buffer(
            "_complement", torch.from_numpy(COMPLEMENT.copy()).long(), persistent=False
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes; a class id is a place in it."""
        return self.config.labels

    @property
    def causal(self) -> bool:
        """Whether a position sees only what comes before it, so that states can be carried."""
        return self.backbone.causal

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Scores of windows, before the temperature and before the softmax.

        Args:
            tokens: (B, L) integers 0 to 15 of any integer type, padded at the right.
            lengths: (B,) real bases of each row, 1 to L; None when no row is padded. What stands
                behind a row's length changes nothing.

        Returns:
            (B, classes) logits, float32 (the weights' type when that is not float32).

        Raises:
            UsageError: tokens that are not (B, L), or L = 0.
        """
        if tokens.dim() != 2 or tokens.shape[1] == 0:
            raise UsageError(
                f"tokens must be (batch, length) with a base or more, not {tuple(tokens.shape)}"
            )
        segments = None
        if lengths is not None and not self.causal:
            # Read from the right, padding comes first: as a segment of its own it leaves no state.
            position = torch.arange(tokens.shape[1], device=tokens.device)
            segments = (position >= lengths[:, None].to(tokens.device)).to(torch.int32)
        hidden, _ = self.backbone(self.embedding(tokens.long()), segment_ids=segments)
        return self._score(self.pooling(hidden, lengths))

    def forward_packed(self, tokens: Tensor, segments: Tensor, count: int) -> Tensor:
        """Scores of every segment of packed rows; equal to `forward` of each by itself.

        Args:
            tokens: (B, L) integers 0 to 15.
            segments: (B, L) integers 0, 1, 2, ... along a row (`mambabio.packing.PackedBatch`).
            count: segments a row at most; higher numbers are padding.

        Returns:
            (B, count, classes) logits; where a row has fewer segments they mean nothing.

        Raises:
            UsageError: a model that pools by the largest value.
        """
        hidden, _ = self.backbone(self.embedding(tokens.long()), segment_ids=segments)
        return self._score(self.pooling.segments(hidden, segments, count))

    def forward_chunks(self, chunks: Iterable[Tensor]) -> Tensor:
        """Scores of whole sequences that arrive in pieces, the state carried from one to the next.

        Equals `forward` of the joined pieces to rounding, and needs memory for one piece.

        Args:
            chunks: (B, any length) token ids each, in order; empty ones are skipped.

        Returns:
            (B, classes) logits.

        Raises:
            UsageError: the model reads both directions at once, or nothing came.
        """
        self.require_causal()
        state = pool = None
        for tokens in chunks:
            if tokens.shape[1] == 0:
                continue
            hidden, state = self.backbone(self.embedding(tokens.long()), state)
            if pool is None:
                pool = self.pooling.start(hidden.shape[0], hidden.shape[2], hidden.device)
            pool = self.pooling.update(pool, hidden, None)
        if pool is None:
            raise UsageError("forward_chunks was given no bases; give one piece or more")
        return self._score(self.pooling.finish(pool))

    def _score(self, pooled: Tensor) -> Tensor:
        return self.head(self.dropout(pooled.to(self.head.weight.dtype)))

    def require_causal(self) -> None:
        """Raise `UsageError` unless the state can be carried from piece to piece."""
        if not self.causal:
            raise UsageError(
                "this model has bidirectional mixers, which need the whole sequence at once: no "
                "state can be carried through a record in chunks; classify by windows instead"
            )

    def reverse_complement(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The other strand of each row, (B, L); padding stays at the right."""
        other = self.get_buffer("_complement")[tokens.long()]
        if lengths is None:
            return other.flip(1)
        position = torch.arange(tokens.shape[1], device=tokens.device)
        source = lengths[:, None].to(tokens.device) - 1 - position
        return other.gather(1, source.clamp_min(0)).masked_fill(source < 0, PAD)

    def with_temperature(self, temperature: float) -> SpeciesClassifier:
        """Set the temperature that predicted probabilities are divided by; returns the model."""
        self.config = replace(self.config, temperature=temperature)
        return self

    def classify(
        self, path: str | PathLike[str], *, whole: bool = False, **options: Any
    ) -> Iterator[Prediction]:
        """Classify every record of a sequence file; see `mambabio.classify.classify`."""
        from mambabio.classify import classify

        return classify(self, path, whole=whole, **options)

    def save_pretrained(self, folder: str | PathLike[str]) -> Path:
        """Write `config.json` and `model.safetensors`, all of it or nothing.

        An existing model folder is replaced; a folder that holds anything else is refused.
        """
        from mambabio.classifier_files import save_classifier

        return save_classifier(self, Path(folder))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> SpeciesClassifier:
        """Read a model folder, or the run folder that holds one as `model/`, ready to predict.

        Args:
            folder: where `config.json` and `model.safetensors` are.
            device: where the model shall run.
            dtype: of the weights (those that stay float32 excepted); as stored by default.

        Raises:
            DataError: no model there, another kind of model, an unknown or missing setting, or
                weights that do not fit; the message names file and entry.
        """
        from mambabio.classifier_files import load_classifier

        return load_classifier(Path(folder), device=device, dtype=dtype)
