"""Which training records, or which ends of them, are held out for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

MINIMUM_TAIL = 64


@dataclass(frozen=True)
class Unit:
    """One source record of one label, as far as the choice needs it.

    digest: of its sequence, so that equal sequences stay together and neither the order of files
    nor their names matter. length: bases left for use.
    """

    digest: str
    length: int


def hold_out(units: Sequence[Unit], fraction: float, key: str) -> tuple[set[int], dict[int, int]]:
    """Choose what of one label is held out.

    - From 1 / fraction distinct records on (10 at 10 %): that fraction of them, at least one,
      whole. They are taken in the order of a hash of ``key`` and their sequence; a record of more
      than a quarter of the label's bases is passed over, because training needs it.
    - Fewer records: the end of each, the last ``fraction`` of its bases, where that makes at
      least 64 bases.
    - Fewer and all too short for that: one whole record if there are two or more, else nothing.

    Args:
        units: the label's training records.
        fraction: 0 (nothing) up to, but not including, 1.
        key: what the choice depends on beside the sequences, as a seed.

    Returns:
        The places of the records held out whole, and, by place, how many bases stay in training
        where only the end is held out.

    Example:
        >>> hold_out([Unit("a", 1000)], 0.1, "0")
        (set(), {0: 900})
        >>> whole, ends = hold_out([Unit(str(i), 1000) for i in range(20)], 0.1, "0")
        >>> len(whole), ends
        (2, {})
    """
    if fraction <= 0 or not units:
        return set(), {}
    groups: dict[str, list[int]] = {}
    for place, unit in enumerate(units):
        groups.setdefault(unit.digest, []).append(place)
    order = sorted(groups, key=lambda digest: _rank(key, digest))
    if len(groups) * fraction >= 1 - 1e-9:
        total = sum(unit.length for unit in units)
        wanted = max(1, round(len(groups) * fraction))
        fitting = [d for d in order if sum(units[p].length for p in groups[d]) <= total / 4]
        return {place for digest in fitting[:wanted] for place in groups[digest]}, {}
    tails = {place: int(unit.length * fraction) for place, unit in enumerate(units)}
    if len(groups) == len(units) and any(tail >= MINIMUM_TAIL for tail in tails.values()):
        kept = {p: units[p].length - tail for p, tail in tails.items() if tail >= MINIMUM_TAIL}
        return set(), kept
    if len(groups) >= 2:
        return set(groups[order[0]]), {}
    return set(), {}


def _rank(key: str, digest: str) -> str:
    return hashlib.sha256(f"{key}:{digest}".encode()).hexdigest()
