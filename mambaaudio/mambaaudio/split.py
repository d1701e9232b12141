"""Which training recordings are held out for validation: whole files or speakers, never windows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mambacore.errors import DataError

SplitBy = Literal["file", "speaker"]
_LARGEST_SHARE = 0.25


@dataclass(frozen=True)
class Unit:
    """A training recording, as far as the choice needs it.

    digest: of its samples, so that equal recordings stay together and neither the order of files
    nor their names matter. length: samples. label, speaker: numbers, 0 for none. file: what it is
    a channel of, which stay together too; empty where it is alone.
    """

    digest: str
    length: int
    label: int = 0
    speaker: int = 0
    file: str = ""


def hold_out(
    units: Sequence[Unit], fraction: float, seed: int, by: SplitBy = "file"
) -> tuple[set[int], dict[int, int]]:
    """Choose what is held out.

    - By file: `fraction` of each label's recordings, at least one recording in all, in the order
      of a hash of seed and samples; the channels of a file count as one. One that holds more than
      a quarter of all samples is passed over, because training needs it.
    - Where every recording is as large as that (one to four long files): the end of each, the
      last `fraction` of its samples in one piece.
    - By speaker: all recordings of `fraction` of the speakers, at least of one.

    Args:
        units: the training recordings.
        fraction: 0 (nothing) up to, but not including, 1.
        seed: of the choice.
        by: "file" or "speaker".

    Returns:
        The places of the recordings held out whole, and, by place, how many samples stay in
        training where only the end is held out.

    Raises:
        DataError: by speaker, but fewer than two speakers are known.

    Example:
        >>> hold_out([Unit("a", 1000)], 0.1, 0)
        (set(), {0: 900})
        >>> whole, ends = hold_out([Unit(str(i), 1000) for i in range(20)], 0.1, 0)
        >>> len(whole), ends
        (2, {})
    """
    if fraction <= 0 or not units:
        return set(), {}
    if by == "speaker":
        return _speakers(units, fraction, seed), {}
    total = sum(unit.length for unit in units)
    fitting = [
        places
        for places in _together(units)
        if sum(units[place].length for place in places) <= total * _LARGEST_SHARE
    ]
    if not fitting:
        return set(), {p: u.length - int(u.length * fraction) for p, u in enumerate(units)}
    order = sorted(fitting, key=lambda places: _rank(seed, min(units[p].digest for p in places)))
    chosen: list[list[int]] = []
    for label in sorted({unit.label for unit in units}):
        own = [places for places in order if units[places[0]].label == label]
        # Whole classes stay in training, too.
        wanted = min(round(len(own) * fraction), len(own) - 1)
        chosen += own[: max(wanted, 0)]
    chosen = chosen or order[:1]
    return {place for places in chosen for place in places}, {}


def _together(units: Sequence[Unit]) -> list[list[int]]:
    """Places in groups, linked by equal samples or a common file."""
    alike: dict[tuple[str, str], list[int]] = {}
    for place, unit in enumerate(units):
        for key in _keys(unit):
            alike.setdefault(key, []).append(place)
    groups: list[list[int]] = []
    seen: set[int] = set()
    for first in range(len(units)):
        group: list[int] = []
        waiting = [first]
        while waiting:
            place = waiting.pop()
            if place not in seen:
                seen.add(place)
                group.append(place)
                for key in _keys(units[place]):
                    waiting += alike.pop(key, ())
        if group:
            groups.append(sorted(group))
    return groups


def _keys(unit: Unit) -> list[tuple[str, str]]:
    return [("digest", unit.digest)] + ([("file", unit.file)] if unit.file else [])


def _speakers(units: Sequence[Unit], fraction: float, seed: int) -> set[int]:
    speakers = sorted({unit.speaker for unit in units if unit.speaker})
    if len(speakers) < 2:
        raise DataError(
            f"validation by speaker needs two or more speakers among the training recordings; "
            f"there are {len(speakers)}. Fill in the sheet's column speaker, or hold out by file"
        )
    wanted = min(max(1, round(len(speakers) * fraction)), len(speakers) - 1)
    order = sorted(speakers, key=lambda speaker: _rank(seed, str(speaker)))
    held = set(order[:wanted])
    return {place for place, unit in enumerate(units) if unit.speaker in held}


def _rank(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
