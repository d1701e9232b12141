"""A record's letters, as they arrive in chunks, cut for prediction the way training cut them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from mambabio.alphabet import Ids, N
from mambabio.store import NPolicy
from mambabio.windows import MINIMUM_WINDOW


def stretches(chunks: Iterable[Ids], n_policy: NPolicy) -> Iterator[tuple[bool, Ids]]:
    """Apply the policy for N to a record that arrives in chunks.

    Yields (begins, ids): pieces of sequence in order, and whether a piece begins a new stretch,
    which nothing may be carried into. "cut" leaves N out and "keep" leaves it in, so that a
    record is one stretch; "split" begins one after each run of N. Empty pieces are left out.

    >>> [(new, ids.tolist()) for new, ids in stretches([np.array([0, 4, 4, 1], np.uint8)], "split")]
    [(True, [0]), (True, [1])]
    """
    begins = True
    for ids in chunks:
        if not ids.size:
            continue
        is_n = ids == N
        if n_policy == "keep" or not is_n.any():
            yield begins, ids
            begins = False
        elif n_policy == "cut":
            kept = ids[~is_n]
            if kept.size:
                yield begins, kept
                begins = False
        else:
            edges = np.flatnonzero(np.diff(is_n, prepend=True, append=True)).reshape(-1, 2)
            for start, end in edges.tolist():
                yield begins or start > 0, ids[start:end]
                begins = False
            begins = bool(is_n[-1])


def tile_stream(
    chunks: Iterable[Ids], window: int, n_policy: NPolicy, *, minimum: int = MINIMUM_WINDOW
) -> Iterator[Ids]:
    """Windows of a record from its start on, without overlap, in constant memory.

    Args:
        chunks: the record's ids, pieces of any length.
        window: bases in a window.
        n_policy: what to do with N, see `stretches`; each stretch is tiled from its own start.
        minimum: the rest at a stretch's end is a window too when it has this many bases, or
            when the record has no other window; then the longest rest is taken.

    Yields:
        (window,) ids, or fewer for a rest. Nothing when nothing is left of the record.

    >>> [len(w) for w in tile_stream([np.zeros(250, np.uint8)], 100, "cut", minimum=40)]
    [100, 100, 50]
    """
    minimum = min(minimum, window)
    held: list[Ids] = []
    count = 0
    some = False
    spare: Ids | None = None
    for begins, ids in stretches(chunks, n_policy):
        if begins and count:
            rest, held, count = np.concatenate(held), [], 0
            if len(rest) >= minimum:
                yield rest
                some = True
            elif spare is None or len(rest) > len(spare):
                spare = rest
        start = 0
        while count + len(ids) - start >= window:
            end = start + window - count
            yield np.concatenate([*held, ids[start:end]]) if held else ids[start:end]
            held, count, start, some = [], 0, end, True
        if start < len(ids):
            held.append(ids[start:])
            count += len(ids) - start
    rest = np.concatenate(held) if held else None
    if rest is not None and len(rest) >= minimum:
        yield rest
        some = True
    if not some:
        left = max((x for x in (spare, rest) if x is not None), key=len, default=None)
        if left is not None:
            yield left
