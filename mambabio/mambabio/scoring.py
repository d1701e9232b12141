"""Log-probabilities of windows and of whole sequences: strands, temperature, device, precision.

What `classify` and `evaluate` have in common, so that both mean the same by a model's answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambabio.alphabet import PAD, Ids, reverse_complement
from mambabio.classifier import SpeciesClassifier
from mambacore.errors import UsageError

_AUTOCAST = {
    "float32": None,
    "fp32": None,
    "32": None,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "bf16-mixed": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "16-mixed": torch.float16,
}
_BASES_AT_ONCE = {"cpu": 1 << 14}
_BASES_AT_ONCE_ELSEWHERE = 1 << 20


class Scorer:
    """Calls a model on windows, or on whole sequences in chunks, without gradients.

    log p = log_softmax(mean over strands of logits / temperature)

    Args:
        model: dropout is off while it scores.
        both_strands: mean over the sequence and its reverse complement; the model's own setting
            by default.
        precision: "float32", or "bfloat16" or "float16" for autocast.

    Raises:
        UsageError: an unknown precision.
    """

    def __init__(
        self,
        model: SpeciesClassifier,
        *,
        both_strands: bool | None = None,
        precision: str = "float32",
    ) -> None:
        if precision not in _AUTOCAST:
            raise UsageError(
                f"precision is {precision!r}; accepted are float32, bfloat16 and float16"
            )
        self.model = model
        self.both_strands = model.config.both_strands if both_strands is None else both_strands
        self.autocast = _AUTOCAST[precision]

    @property
    def bases_at_once(self) -> int:
        """How many bases the device is given at a time by default."""
        return _BASES_AT_ONCE.get(self.model.device.type, _BASES_AT_ONCE_ELSEWHERE)

    def batch_size(self, window: int) -> int:
        """Windows a batch by default."""
        return max(1, self.bases_at_once // window)

    def __call__(
        self, tokens: NDArray[np.uint8], lengths: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """(B, classes) log-probabilities of (B, L) ids with `lengths` (B,) real bases."""
        device = self.model.device
        rows = torch.from_numpy(np.ascontiguousarray(tokens)).to(device)
        real = None
        if len(lengths) and int(lengths.min()) < tokens.shape[1]:
            real = torch.from_numpy(np.asarray(lengths, dtype=np.int64)).to(device)
        with self._scoring():
            logits = self.model(rows, real).double()
            if self.both_strands:
                other = self.model.reverse_complement(rows, real)
                logits = (logits + self.model(other, real).double()) / 2
            return self._log_probabilities(logits)

    def windows(self, windows: Sequence[Ids], batch_size: int) -> NDArray[np.float64]:
        """(n, classes) log-probabilities of windows of any lengths, in their order.

        Windows of like length are put together, so that little is padding.
        """
        out = np.empty((len(windows), len(self.model.labels)))
        order = sorted(range(len(windows)), key=lambda i: len(windows[i]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            lengths = np.array([len(windows[i]) for i in chosen], dtype=np.int64)
            tokens = np.full((len(chosen), int(lengths.max())), PAD, dtype=np.uint8)
            for row, i in zip(tokens, chosen, strict=True):
                row[: len(windows[i])] = windows[i]
            out[chosen] = self(tokens, lengths)
        return out

    def whole(self, chunks: Iterable[Ids]) -> tuple[NDArray[np.float64], int]:
        """(classes,) log-probabilities of one sequence in chunks, and its length in bases.

        The state is carried through; nothing is held but, for the other strand, the ids.
        """
        held: list[Ids] = []
        count = 0

        def forward() -> Iterator[Ids]:
            nonlocal count
            for ids in chunks:
                count += len(ids)
                if self.both_strands:
                    held.append(ids)
                yield ids

        def backward() -> Iterator[Ids]:
            while held:
                yield reverse_complement(held.pop())

        with self._scoring():
            logits = self.model.forward_chunks(map(self._row, forward())).double()
            if self.both_strands:
                logits = (logits + self.model.forward_chunks(map(self._row, backward()))) / 2
            return self._log_probabilities(logits)[0], count

    def _row(self, ids: Ids) -> Tensor:
        # A copy, since ids may be a read-only view of a file's bytes.
        return torch.from_numpy(ids.copy()).to(self.model.device)[None]

    def _log_probabilities(self, logits: Tensor) -> NDArray[np.float64]:
        return (logits / self.model.config.temperature).log_softmax(-1).cpu().numpy()

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        training = self.model.training
        self.model.eval()
        try:
            with (
                torch.inference_mode(),
                torch.autocast(
                    self.model.device.type, self.autocast, enabled=self.autocast is not None
                ),
            ):
                yield
        finally:
            self.model.train(training)


def normalise(log_probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities in proportion to exp of the last axis, which sum to 1."""
    p = np.exp(log_probabilities - log_probabilities.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)
