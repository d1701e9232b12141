"""From a sequence file to one prediction a record, streamed, in the file's order."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from mambabio.alphabet import Ids, N
from mambabio.classifier import SpeciesClassifier
from mambabio.cutting import stretches, tile_stream
from mambabio.records import Notice, RecordStream, stream_records
from mambabio.scoring import Scorer, normalise
from mambacore.errors import DataError, UsageError

UNCLASSIFIED = "unclassified"
_CHUNK = 1 << 20
_BATCHES_AHEAD = 4
_FAR = 8  # times the trained window: from here on a carried state is worth a warning


@dataclass(frozen=True)
class Prediction:
    """What a model says of one record.

    record: its name. length: its bases in the file, N included. label: the most probable class,
    or "unclassified". probability: of the most probable class. probabilities: of every class, in
    the order of the model's labels; they sum to 1.
    """

    record: str
    length: int
    label: str
    probability: float
    probabilities: tuple[float, ...]


@dataclass
class _Open:
    """A record whose windows are on their way."""

    name: str
    where: str
    total: NDArray[np.float64]
    length: int = 0
    plain: bool = False  # has a base that is not N
    weight: int = 0
    waiting: int = 0
    read: bool = False

    def count(self, chunks: Iterator[Ids]) -> Iterator[Ids]:
        """Pass the record's letters on, and count them."""
        for ids in chunks:
            self.length += len(ids)
            self.plain = self.plain or bool((ids != N).any())
            yield ids

    def add(self, log_probabilities: NDArray[np.float64], bases: int) -> None:
        self.total += log_probabilities * bases
        self.weight += bases


@dataclass
class _Queue:
    """Windows of several records that wait to be scored together."""

    scorer: Scorer
    batch_size: int
    windows: list[Ids] = field(default_factory=list)
    owners: list[_Open] = field(default_factory=list)

    def put(self, window: Ids, owner: _Open) -> bool:
        """Add a window; True when the queue is full."""
        self.windows.append(window)
        self.owners.append(owner)
        owner.waiting += 1
        return len(self.windows) >= self.batch_size * _BATCHES_AHEAD

    def score(self) -> None:
        if not self.windows:
            return
        scores = self.scorer.windows(self.windows, self.batch_size)
        for window, owner, score in zip(self.windows, self.owners, scores, strict=True):
            owner.add(score, len(window))
            owner.waiting -= 1
        self.windows, self.owners = [], []


def classify(
    model: SpeciesClassifier,
    path: str | PathLike[str],
    *,
    whole: bool = False,
    both_strands: bool | None = None,
    window: int | None = None,
    batch_size: int | None = None,
    precision: str = "float32",
    min_probability: float = 0.0,
    format: str | None = None,
    notice: Notice | None = None,
) -> Iterator[Prediction]:
    """Classify every record of a sequence file, in order and in constant memory.

    A record is tiled with windows of the trained length from its start on, as training cut it (N
    left out, unless the model was trained otherwise). Its log-probabilities are the mean over
    the windows, each weighted by its bases; the rest at the end counts when it has at least 64
    bases or the record has nothing else. Windows of several records are scored together.

    Args:
        model: its device is used; on a CPU, `torch.set_num_threads` sets the threads.
        path: a file in any format that `read_records` knows, gzip or not, or "-" for stdin.
        whole: carry the state through the whole record instead of averaging windows. The model
            then sees contexts much longer than it was trained on.
        both_strands: average each window (with `whole`, the record) with its reverse
            complement; the model's own setting by default. A record's answer is then the same on
            either strand when it is one window, a multiple of windows, or `whole`.
        window: bases in a window instead of the trained length.
        batch_size: windows scored at once; chosen by window and device by default.
        precision: "float32", "bfloat16" or "float16".
        min_probability: below it the label is "unclassified"; the probabilities stay.
        format: of the file; recognised by content by default.
        notice: called with a sentence where there is something to know; `warnings.warn` by
            default.

    Yields:
        One `Prediction` a record. A record of nothing but N is "unclassified", every class being
        equally probable, with a notice.

    Raises:
        UsageError: an argument out of range, `whole` with a bidirectional model.
        SequenceError: the file cannot be read; the records before the bad one are given first.

    >>> import os, tempfile
    >>> from mambabio.classifier_config import ClassifierConfig
    >>> from mambacore.config import ModelConfig
    >>> config = ClassifierConfig(ModelConfig(d_model=8, n_layer=1), ("ape", "bat"), window=64)
    >>> path = os.path.join(tempfile.mkdtemp(), "x.fa")
    >>> with open(path, "w") as file: _ = file.write(">r1\\n" + "ACGT" * 50)
    >>> [(p.record, p.length) for p in SpeciesClassifier(config).classify(path)]
    [('r1', 200)]
    """
    scorer = Scorer(model, both_strands=both_strands, precision=precision)
    window = model.config.window if window is None else window
    batch_size = scorer.batch_size(window) if batch_size is None else batch_size
    for name, value in (("window", window), ("batch_size", batch_size)):
        if value < 1:
            raise UsageError(f"{name} is {value}; give a whole number of at least 1")
    if not 0 <= min_probability <= 1:
        raise UsageError(f"min_probability is {min_probability}; accepted is 0 to 1")
    tell = notice or _warn
    chunk = _CHUNK
    if whole:
        model.require_causal()
        chunk = scorer.bases_at_once
        if "attention" in model.config.model.layer_names:
            tell("attention layers keep every position: with whole records memory grows with them")
    streams = stream_records(path, chunk_bytes=chunk, format=format, notice=notice)
    if whole:
        records = _whole_records(scorer, streams, tell)
    else:
        records = _windowed_records(scorer, streams, window, batch_size)
    return (_prediction(record, model.labels, min_probability, tell) for record in records)


def _windowed_records(
    scorer: Scorer, streams: Iterator[RecordStream], window: int, batch_size: int
) -> Iterator[_Open]:
    queue = _Queue(scorer, batch_size)
    pending: deque[_Open] = deque()
    policy = scorer.model.config.n_policy
    failure: DataError | None = None
    try:
        for stream in streams:
            record = _open(stream, scorer)
            pending.append(record)
            for piece in tile_stream(record.count(stream.chunks), window, policy):
                if queue.put(piece, record):
                    queue.score()
            record.read = True
            while pending and pending[0].read and not pending[0].waiting:
                yield pending.popleft()
    except DataError as error:
        failure = error
    queue.score()
    yield from (record for record in pending if record.read)
    if failure is not None:
        raise failure


def _whole_records(
    scorer: Scorer, streams: Iterator[RecordStream], tell: Callable[[str], None]
) -> Iterator[_Open]:
    trained = scorer.model.config.window
    policy = scorer.model.config.n_policy
    told = False
    for stream in streams:
        record = _open(stream, scorer)
        parts = _numbered(stretches(record.count(stream.chunks), policy))
        for _, part in groupby(parts, key=lambda item: item[0]):
            record.add(*scorer.whole(ids for _, ids in part))
        if not told and record.length > _FAR * trained:
            told = True
            tell(
                f"{record.where}: the state is carried through {record.length:,} bases, but the "
                f"model was trained on {trained:,}: judge by `evaluate` with long windows first"
            )
        yield record


def _numbered(parts: Iterator[tuple[bool, Ids]]) -> Iterator[tuple[int, Ids]]:
    number = 0
    for begins, ids in parts:
        number += begins
        yield number, ids


def _open(stream: RecordStream, scorer: Scorer) -> _Open:
    where = f"{stream.source}: record {stream.name!r}"
    return _Open(stream.name, where, np.zeros(len(scorer.model.labels)))


def _prediction(
    record: _Open, labels: tuple[str, ...], minimum: float, tell: Callable[[str], None]
) -> Prediction:
    classes = len(labels)
    if not record.plain or not record.weight:
        tell(f"{record.where} is nothing but N: it stays unclassified")
        p = np.full(classes, 1 / classes)
        return Prediction(record.name, record.length, UNCLASSIFIED, 1 / classes, tuple(p.tolist()))
    p = normalise(record.total / record.weight)
    best = int(p.argmax())
    label = labels[best] if p[best] >= minimum else UNCLASSIFIED
    return Prediction(record.name, record.length, label, float(p[best]), tuple(p.tolist()))


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)
