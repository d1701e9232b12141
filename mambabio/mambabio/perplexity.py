"""Perplexity a base of a language model against the length of its context.

The last `scored` bases of a window are scored with 2^10, 2^11, ... bases of context before each
window's end, the same bases at every length. Windows lie within stretches of sequence without N.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambabio.language import SCORED
from mambabio.markov import MarkovModel
from mambabio.metrics import bootstrap_interval
from mambabio.sheet import Split
from mambabio.store import SequenceStore, StoredRecord
from mambabio.windows import BLOCK
from mambacore.errors import DataError, UsageError
from mambacore.language_model import LanguageModel
from mambacore.losses import chunked_cross_entropy

CONTEXTS = tuple(1 << n for n in range(10, 18))
_AT_ONCE = {"cpu": 1 << 14}
_AT_ONCE_ELSEWHERE = 1 << 20
_AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ContextScore:
    """Figures at one context length. bits: a base, the mean over all scored bases. low, high:
    bounds of its 95 % bootstrap interval, blocks of 50 kb resampled. perplexity: 2^bits."""

    context: int
    bits: float
    low: float
    high: float

    @property
    def perplexity(self) -> float:
        """2 to the bits."""
        return 2.0**self.bits


@dataclass(frozen=True)
class Perplexity:
    """What `perplexity` measured.

    split, windows, scored (bases a window), bases (scored in all). contexts: by length.
    gain: bits that the longest context saves over the shortest, with a paired 95 % interval.
    markov: the interpolated Markov model on the same bases, and its order; None without.
    advantage: bits by which the model at its longest context beats it, with a paired interval.
    """

    split: Split
    windows: int
    scored: int
    bases: int
    contexts: tuple[ContextScore, ...]
    gain: tuple[float, float, float]
    markov: ContextScore | None = None
    advantage: tuple[float, float, float] | None = None

    def to_json(self) -> str:
        """One JSON object."""
        values: dict[str, Any] = asdict(self)
        for entry, score in zip(values["contexts"], self.contexts, strict=True):
            entry["perplexity"] = score.perplexity
        if self.markov is not None:
            values["markov"]["perplexity"] = self.markov.perplexity
        return json.dumps(values, indent=2)

    def to_text(self) -> str:
        """A table."""
        lines = [
            f"{self.split}: {self.windows:,} windows, the last {self.scored:,} bases of each",
            "context     perplexity  bits a base  95 % interval",
        ]
        lines += [_row(f"{score.context:,}", score) for score in self.contexts]
        if self.markov is not None:
            lines.append(_row(f"Markov {self.markov.context}", self.markov))
        if len(self.contexts) > 1:
            first, last = self.contexts[0].context, self.contexts[-1].context
            verb = "save" if self.gain[0] >= 0 else "cost"
            lines.append(f"{last:,} bases of context {verb} {_against(self.gain, f'{first:,}')}")
        if self.advantage is not None:
            verb = "saves" if self.advantage[0] >= 0 else "costs"
            lines.append(f"the model {verb} {_against(self.advantage, 'the Markov model')}")
        return "\n".join(lines)


def _row(name: str, score: ContextScore) -> str:
    interval = f"{score.low:.4f} to {score.high:.4f}"
    return f"{name:<10}  {score.perplexity:>10.4f}  {score.bits:>11.4f}  {interval}"


def _against(saved: tuple[float, float, float], other: str) -> str:
    """How many bits less or more than another: the number is never negative, its interval may be.

    >>> print("it saves", _against((0.25, 0.125, 0.375), "that"))
    it saves 0.2500 bits a base over that (95 % interval 0.1250 to 0.3750)
    >>> print("it costs", _against((-0.25, -0.375, 0.125), "that"))
    it costs 0.2500 bits a base more than that (95 % interval -0.1250 to 0.3750)
    """
    value, low, high = saved
    than = "over"
    if value < 0:
        low, high, than = -high, -low, "more than"
    return f"{abs(value):.4f} bits a base {than} {other} (95 % interval {low:.4f} to {high:.4f})"


def perplexity(
    model: LanguageModel,
    store: SequenceStore,
    *,
    split: Split = "test",
    contexts: Sequence[int] = CONTEXTS,
    scored: int = 1024,
    most: int = 512,
    markov: MarkovModel | None = None,
    precision: str = "float32",
    batch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Score the same bases with contexts of several lengths.

    A context of L means that the model reads the L bases that end one before the window's last,
    from an empty state, and predicts the last `scored` of their successors: so even with
    L = `scored` each scored base has one base before it.

    Args:
        model: a causal language model; its device is used. Where N splits records (the store's
            ``n_policy`` "split") every window is free of N; IUPAC codes are read, never scored.
        store: the sequences.
        split: whose records.
        contexts: lengths, each at least `scored`. Only stretches longer than the longest count.
        scored: bases at a window's end; those of two windows never overlap.
        most: windows at most, evenly spread.
        markov: an interpolated Markov model to score on the same bases.
        precision: "float32", "bfloat16" or "float16".
        batch_size: windows at a time; by default about a million bases on a GPU, 16,384 on a CPU,
            where longer windows are read in chunks.
        seed: of the bootstrap.
        progress: called with passes done and in all.

    Raises:
        UsageError: an argument out of range, or a model that needs the whole sequence.
        DataError: no stretch is long enough, or the split has no records.
    """
    lengths = sorted(set(contexts))
    if not lengths or scored < 1 or lengths[0] < scored or most < 1:
        raise UsageError(
            f"contexts {', '.join(map(str, lengths)) or 'none'}: give one or more, each at least "
            f"as long as the {scored} scored bases"
        )
    if precision not in _AUTOCAST:
        raise UsageError(f"precision is {precision!r}; accepted are {', '.join(_AUTOCAST)}")
    if not model.causal:
        raise UsageError("perplexity needs a causal model; this one sees the bases it predicts")
    ends = _ends(store, split, lengths[-1], scored, most)
    records = [store.records[i] for i in ends[:, 0]]
    reader = _Reader(model, store, ends, scored, precision)
    bits = {}
    for number, length in enumerate(lengths):
        bits[length] = reader.bits(length, batch_size)
        if progress:
            progress(number + 1, len(lengths))
    counted = reader.counted
    share = len(ends) / counted.sum()

    def interval(values: NDArray[np.float64]) -> tuple[float, float]:
        # Windows score nearly as many bases each; scaled, their mean is the mean over bases.
        strata = np.array([record.label_id for record in records])
        blocks = [
            (r.row, r.source, r.name, (r.start + e) // BLOCK)
            for r, (_, e) in zip(records, ends.tolist(), strict=True)
        ]
        places = {block: i for i, block in enumerate(dict.fromkeys(blocks))}
        groups = np.array([places[block] for block in blocks])
        found = bootstrap_interval(values * share, strata, groups, macro=False, seed=seed)
        return found.low, found.high

    def score(context: int, values: NDArray[np.float64]) -> ContextScore:
        return ContextScore(context, float(values.sum() / counted.sum()), *interval(values))

    def paired(
        worse: NDArray[np.float64], better: NDArray[np.float64]
    ) -> tuple[float, float, float]:
        saved = worse - better
        return float(saved.sum() / counted.sum()), *interval(saved)

    last = bits[lengths[-1]]
    rival = advantage = None
    if markov is not None:
        values = reader.markov_bits(markov)
        rival, advantage = score(markov.order, values), paired(values, last)
    return Perplexity(
        split=split,
        windows=len(ends),
        scored=scored,
        bases=int(counted.sum()),
        contexts=tuple(score(length, bits[length]) for length in lengths),
        gain=paired(bits[lengths[0]], last),
        markov=rival,
        advantage=advantage,
    )


def _ends(
    store: SequenceStore, split: Split, longest: int, scored: int, most: int
) -> NDArray[np.int64]:
    """(windows, 2): record and where in it a window ends; `longest` + 1 bases stand before."""
    records = store.select(split)
    if not records:
        raise DataError(f"there are no {split} records: the sheet needs rows with split {split}")
    rows = [
        (record.index, end)
        for record in records
        for end in range(longest + 1, record.length + 1, scored)
        if _some_scored(store, record, end, scored)
    ]
    if not rows:
        most_of = max(records, key=lambda record: record.length)
        raise DataError(
            f"no stretch of {split} sequence without N is longer than {longest:,} bases; the "
            f"longest, of {most_of.name!r}, has {most_of.length:,}. Ask for shorter contexts"
        )
    chosen = np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64)
    return np.array(rows, np.int64)[chosen]


def _some_scored(store: SequenceStore, record: StoredRecord, end: int, scored: int) -> bool:
    return bool((store.ids(record, end - scored, scored) < SCORED).any())


class _Reader:
    """Bits of each window's scored bases, under a model or another."""

    def __init__(
        self,
        model: LanguageModel,
        store: SequenceStore,
        ends: NDArray[np.int64],
        scored: int,
        precision: str,
    ) -> None:
        self._model = model
        self._store = store
        self._ends = ends
        self._scored = scored
        self._autocast = _AUTOCAST[precision]
        self._device = model.embedding.weight.device
        targets = np.stack([self._ids(i, scored) for i in range(len(ends))])
        self.counted = (targets < SCORED).sum(axis=1)

    def _ids(self, window: int, length: int) -> NDArray[np.uint8]:
        record, end = self._ends[window].tolist()
        return self._store.ids(record, end - length, length)

    def bits(self, context: int, batch_size: int | None) -> NDArray[np.float64]:
        """(windows,) bits of the scored bases, read with that much context."""
        at_once = _AT_ONCE.get(self._device.type, _AT_ONCE_ELSEWHERE)
        size = batch_size or max(1, at_once // context)
        out = np.empty(len(self._ends))
        training = self._model.training
        self._model.eval()
        try:
            with (
                torch.inference_mode(),
                torch.autocast(
                    self._device.type, self._autocast, enabled=self._autocast is not None
                ),
            ):
                for start in range(0, len(out), size):
                    chosen = range(start, min(start + size, len(out)))
                    ids = np.stack([self._ids(i, context + 1) for i in chosen])
                    nats = self._nats(torch.from_numpy(ids).to(self._device), at_once)
                    out[start : chosen.stop] = nats / np.log(2)
        finally:
            self._model.train(training)
        return out

    def _nats(self, ids: Tensor, at_once: int) -> NDArray[np.float64]:
        """Long windows chunk by chunk, the state carried: memory for one chunk."""
        tokens, targets = ids[:, :-1], ids[:, -self._scored :]
        before = tokens.shape[1] - self._scored
        step = max(1, at_once // len(ids))
        state = None
        for start in range(0, before, step):
            _, state = self._model.hidden(tokens[:, start : min(start + step, before)], state)
        hidden, _ = self._model.hidden(tokens[:, before:], state)
        weight = self._model.head_weight
        return np.array(
            [
                float(chunked_cross_entropy(h, weight, t, mask=t < SCORED).total)
                for h, t in zip(hidden, targets, strict=True)
            ]
        )

    def markov_bits(self, markov: MarkovModel) -> NDArray[np.float64]:
        """(windows,) bits of the scored bases under counts."""
        scored = self._scored
        longest = [min(int(end), scored + markov.order) for _, end in self._ends]
        rows = [markov.bits(self._ids(i, n))[-scored:] for i, n in enumerate(longest)]
        return np.nansum(np.stack(rows), axis=1)
