"""Score a waveform model on a split of a corpus, beside floors from the same codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mambaaudio.bits import Scorer
from mambaaudio.corpus import Corpus, Recording
from mambaaudio.evaluation import BitsRow, ContextRow, Evaluation
from mambaaudio.floors import Bigram, Floor, LinearPrediction
from mambaaudio.rows import Coder, Layout
from mambaaudio.sheet import Split
from mambacore.errors import DataError, UsageError

Progress = Callable[[int, int], None]
"""Called with samples done and samples in all."""

CONTEXTS = tuple(2**power for power in range(13, 19))
TARGET = 4096
_BLOCK = 1 << 20
_TOGETHER = 512
_NONE = "(none)"


def corpus_floors(corpus: Corpus, code: str) -> tuple[Floor, ...]:
    """Unigram and bigram counted on the training recordings, where there are any, and linear
    prediction."""
    prediction = LinearPrediction.for_rate(code, corpus.rate)
    training = corpus.select("train")
    if not training:
        return (prediction,)
    coder = Coder(corpus, Layout(code))
    bigram = Bigram.fit((c for r in training for c in _blocks(corpus, coder, r)), code)
    return bigram.unigram, bigram, prediction


def evaluate(
    scorer: Scorer,
    corpus: Corpus,
    *,
    split: Split = "test",
    conditions: bool = True,
    floors: Sequence[Floor] | None = None,
    contexts: Sequence[int] = (),
    context_blocks: int = 32,
    without: Sequence[str] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """Bits per sample of every recording of a split, each heard from its first sample on.

    Args:
        scorer: of a `WaveformModel`.
        corpus: at the model's rate and gain, with the model's labels and speakers.
        split: "train", "val" or "test".
        conditions: whether the model is told labels and speakers.
        floors: from `corpus_floors`, which is the default; () for none.
        contexts: context lengths in samples to compare, on the same targets: stretches of 4,096
            samples, each predicted anew after so many samples before it.
        context_blocks: such stretches at most, of every recording that is long enough.
        without: speakers to leave out, each for a row of its own.
        progress: called with samples done and in all.

    Raises:
        UsageError: rate, labels or speakers are not the model's; an unknown speaker to leave out.
        DataError: the split has no recordings.
    """
    config = scorer.model.config
    _check(config, corpus, without)
    recordings = corpus.select(split)
    if not recordings:
        raise DataError(f"there are no {split} recordings: the sheet needs rows of that split")
    floors = corpus_floors(corpus, config.code) if floors is None else floors
    coder = Coder(corpus, Layout(config.code))
    total, done = sum(r.length for r in recordings), 0
    sums: dict[int, NDArray[np.float64]] = {}
    for group in _groups(recordings, scorer.chunk):
        for recording, costs in _costs(scorer, corpus, coder, group, floors, conditions):
            sums[recording.index] = costs
        done += sum(r.length for r in group)
        if progress is not None:
            progress(done, total)
    names = [floor.name for floor in floors]

    def row(name: str, chosen: Sequence[Recording]) -> BitsRow:
        samples = sum(r.length for r in chosen)
        bits = np.sum([sums[r.index] for r in chosen], axis=0) / max(samples, 1)
        beside = dict(zip(names, bits[1:].tolist(), strict=True))
        return BitsRow(name, len(chosen), samples, float(bits[0]), beside)

    def rows(ids: Callable[[Recording], int], known: Sequence[str]) -> tuple[BitsRow, ...]:
        found = sorted({ids(r) for r in recordings})
        if found == [0]:
            return ()
        return tuple(
            row(known[i - 1] if i else _NONE, [r for r in recordings if ids(r) == i]) for i in found
        )

    context_rows, targets, reason = (), 0, None
    if contexts:
        context_rows, targets, reason = _contexts(
            scorer, corpus, coder, recordings, sorted(contexts), context_blocks, conditions
        )
    left_out = [(name, corpus.speakers.index(name) + 1) for name in without]
    return Evaluation(
        split=split,
        rate=corpus.rate,
        code=config.code,
        conditions=conditions and bool(corpus.labels or corpus.speakers),
        precision=scorer.precision,
        total=row("all", recordings),
        by_label=rows(lambda r: r.label_id, corpus.labels),
        by_speaker=rows(lambda r: r.speaker_id, corpus.speakers),
        without=tuple(
            row(name, [r for r in recordings if r.speaker_id != number])
            for name, number in left_out
        ),
        files=tuple(row(r.name, [r]) for r in recordings),
        contexts=context_rows,
        context_targets=targets,
        no_contexts=reason,
    )


def _check(config: object, corpus: Corpus, without: Sequence[str]) -> None:
    for name in ("rate", "labels", "speakers"):
        ours, theirs = getattr(config, name), getattr(corpus, name)
        if ours != theirs:
            raise UsageError(
                f"the corpus has {name} {theirs!r}, the model {ours!r}; read the recordings with "
                "the model's"
            )
    for name in without:
        if name not in corpus.speakers:
            known = ", ".join(corpus.speakers) or "no speakers"
            raise UsageError(f"speaker {name!r} cannot be left out; the model knows {known}")


def _groups(recordings: Sequence[Recording], chunk: int) -> Iterator[list[Recording]]:
    """Short recordings in groups, long ones alone."""
    group: list[Recording] = []
    for recording in recordings:
        if recording.length > chunk:
            yield [recording]
            continue
        group.append(recording)
        if len(group) == _TOGETHER:
            yield group
            group = []
    if group:
        yield group


def _blocks(corpus: Corpus, coder: Coder, recording: Recording) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, recording.length, _BLOCK):
        count = min(_BLOCK, recording.length - start)
        yield coder.encode(corpus.samples(recording, start, count), recording.gain)


def _costs(
    scorer: Scorer,
    corpus: Corpus,
    coder: Coder,
    group: Sequence[Recording],
    floors: Sequence[Floor],
    conditions: bool,
) -> Iterator[tuple[Recording, NDArray[np.float64]]]:
    """(1 + floors,) total bits of each recording, the model's first."""
    labels = [r.label_id if conditions else 0 for r in group]
    speakers = [r.speaker_id if conditions else 0 for r in group]
    if len(group) == 1:
        recording = group[0]
        feeds = [scorer.stream(labels[0], speakers[0]), *(f.stream() for f in floors)]
        costs = np.zeros(len(feeds))
        for codes in _blocks(corpus, coder, recording):
            costs += [float(feed(codes).sum()) for feed in feeds]
        yield recording, costs
        return
    codes = [coder.encode(corpus.samples(r), r.gain) for r in group]
    model = scorer.batch(codes, labels, speakers)
    for recording, own, symbols in zip(group, model, codes, strict=True):
        beside = [float(floor.stream()(symbols).sum()) for floor in floors]
        yield recording, np.array([float(own.sum()), *beside])


def _contexts(
    scorer: Scorer,
    corpus: Corpus,
    coder: Coder,
    recordings: Sequence[Recording],
    contexts: Sequence[int],
    blocks: int,
    conditions: bool,
) -> tuple[tuple[ContextRow, ...], int, str | None]:
    """Rows, number of target samples, or why there are none."""
    if contexts[0] < 1:
        raise UsageError(f"a context of {contexts[0]} samples: give at least 1")
    longest = contexts[-1]
    targets = _targets(recordings, longest, blocks)
    if not targets:
        return (), 0, f"no recording is longer than {longest:,} + {TARGET:,} samples"
    result = []
    for context in contexts:
        codes = [
            coder.encode(corpus.samples(r, at - context, context + TARGET), r.gain)
            for r, at in targets
        ]
        labels = [r.label_id if conditions else 0 for r, _ in targets]
        speakers = [r.speaker_id if conditions else 0 for r, _ in targets]
        costs = scorer.batch(codes, labels, speakers)
        result.append(ContextRow(context, float(np.mean([c[-TARGET:].mean() for c in costs]))))
    return tuple(result), len(targets) * TARGET, None


def _targets(
    recordings: Sequence[Recording], longest: int, blocks: int
) -> list[tuple[Recording, int]]:
    """At most so many stretches that have the longest context before them: recording and start.

    Every recording that is long enough has one, where they are not too many; the others go to
    the longer ones, evenly spread in each.
    """
    room = [(r, r.length - longest - TARGET + 1) for r in recordings]
    room = [(recording, places) for recording, places in room if places > 0]
    if len(room) > blocks:
        room = [room[i * len(room) // blocks] for i in range(blocks)]
    ends = np.cumsum([places for _, places in room])
    found = []
    further = np.diff(np.rint((blocks - len(room)) * ends / ends[-1:]), prepend=0)
    for (recording, places), more in zip(room, further, strict=True):
        starts = np.unique(np.linspace(0, places - 1, 1 + int(more)).astype(np.int64))
        found += [(recording, longest + int(start)) for start in starts]
    return found
