"""Records of a split that are nearly in the training data: most of their k-mers stand there."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from mambabio.kmers import INVALID, kmer_codes
from mambabio.sheet import Split
from mambabio.store import Log, SequenceStore, StoredRecord
from mambacore.cache import atomic_write
from mambacore.errors import DataError

K = 31
SHARE = 0.9
_EXACT_BASES = 1 << 22  # up to here every k-mer is looked at, beyond it a sample of this size
_SCATTER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Knuth's multiplicative hash


def near_duplicates(
    store: SequenceStore, split: Split = "test", *, k: int = K, share: float = SHARE
) -> list[int]:
    """Places in `store.records` of the records with over `share` of their k-mers in training.

    A record's distinct canonical k-mers (k bases, either strand) are looked up among those of
    all training records together (validation records count as training for a test split, since
    the model was chosen on them). In splits of more than 4 Mb a sample of the k-mers stands for
    all: those whose hash is smallest, the same ones on both sides (FracMinHash; Irber et al.,
    bioRxiv 2022.01.11.475838), so that memory stays within some 200 MB.

    A record without a k-mer (shorter than k, or all N) is never one.

    >>> from mambabio._examples import example_store
    >>> len(near_duplicates(example_store(), "train"))  # training is in training
    2
    """
    records = store.select(split)
    rate = max(1, -(-sum(r.length for r in records) // _EXACT_BASES))
    own = [_sample(store, record, k, rate) for record in records]
    if not own:
        return []
    known, place = np.unique(np.concatenate(own), return_inverse=True)
    found = np.zeros(len(known), np.bool_)
    training = store.select("train") + (store.select("val") if split == "test" else ())
    for record in training:
        codes = _sample(store, record, k, rate)
        at = np.searchsorted(known, codes)
        inside = at < len(known)
        at, codes = at[inside], codes[inside]
        found[at[known[at] == codes]] = True
    ends = np.cumsum([len(codes) for codes in own])
    hits = np.split(found[place], ends[:-1])
    return [
        record.index
        for record, hit in zip(records, hits, strict=True)
        if hit.size and hit.mean() > share
    ]


def _sample(store: SequenceStore, record: StoredRecord, k: int, rate: int) -> NDArray[np.uint64]:
    """Distinct k-mer codes of a record, one in `rate` of them, sorted."""
    codes = kmer_codes(store.ids(record), k, canonical=True).astype(np.uint64, copy=False)
    codes = codes[codes != np.uint64((1 << 64) + INVALID)]
    if rate > 1:
        codes = codes[codes * _SCATTER < np.uint64((1 << 64) // rate)]
    return np.unique(codes)


def known_near_duplicates(
    store: SequenceStore, split: Split = "test", *, log: Log | None = None
) -> list[int]:
    """`near_duplicates`, remembered in a small file beside the store's data.

    The data file's name stands for its content and for how it was split, so the answer holds as
    long as the file is there. A folder that cannot be written is no error.
    """
    memory = store.data.with_name(f"{store.data.stem}-near-{split}.json")
    with suppress(OSError, ValueError, TypeError):
        places = json.loads(memory.read_text(encoding="utf-8"))
        return [int(place) for place in places if 0 <= int(place) < len(store.records)]
    if log is not None:
        log(f"looking for {split} records that are nearly in the training data")
    found = near_duplicates(store, split)
    with suppress(DataError), atomic_write(memory, "w") as file:
        json.dump(found, file)
    return found
