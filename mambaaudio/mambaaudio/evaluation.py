"""What came of evaluating a waveform model on a split: figures, JSON, a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mambacore.cache import atomic_write
from mambacore.errors import DataError


@dataclass(frozen=True)
class BitsRow:
    """Bits per sample of some recordings: the model's, and each floor's by name."""

    name: str
    files: int
    samples: int
    bits: float
    floors: Mapping[str, float]


@dataclass(frozen=True)
class ContextRow:
    """Bits per sample of the same targets when `context` samples before them were heard."""

    context: int
    bits: float


@dataclass(frozen=True)
class Evaluation:
    """Bits per sample of a model on a split; only real samples count.

    split, rate, code: what was scored. conditions: whether labels and speakers were told.
    precision: of the computation. total: all recordings. by_label, by_speaker, without, files:
    parts of them; `without` leaves one speaker out each. contexts: bits against context length,
    on `context_targets` samples. no_contexts: why there are none.
    """

    split: str
    rate: int
    code: str
    conditions: bool
    precision: str
    total: BitsRow
    by_label: tuple[BitsRow, ...]
    by_speaker: tuple[BitsRow, ...]
    without: tuple[BitsRow, ...]
    files: tuple[BitsRow, ...]
    contexts: tuple[ContextRow, ...] = ()
    context_targets: int = 0
    no_contexts: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """Read what `to_dict` wrote.

        Raises:
            DataError: an entry is missing or of another kind.
        """
        try:
            given = dict(values)
            given["total"] = BitsRow(**given["total"])
            for name in ("by_label", "by_speaker", "without", "files"):
                given[name] = tuple(BitsRow(**row) for row in given[name])
            given["contexts"] = tuple(ContextRow(**row) for row in given["contexts"])
            return cls(**given)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is no evaluation: {type(error).__name__}: {error}") from error

    def save(self, folder: str | Path) -> Path:
        """Write ``SPLIT.json``, beside and renamed; its path."""
        path = Path(folder) / f"{self.split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "w") as file:
            file.write(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")
        return path

    def headline(self) -> str:
        """One line: the model's bits beside the floors'."""
        beside = ", ".join(f"{name} {bits:.3f}" for name, bits in self.total.floors.items())
        seconds = self.total.samples / self.rate
        text = f"{self.split}: {self.total.bits:.3f} bits per sample"
        if beside:
            text += f" ({beside})"
        return f"{text}; {self.total.files:,} recordings, {seconds / 60:.1f} min at {self.rate} Hz"

    def to_text(self, *, files: int = 30) -> str:
        """Tables for people: all, by label, speaker and file, and against context length.

        files: rows of the table by file at most; further ones are left to the JSON.
        """
        parts = [self.headline(), "", _table([("all recordings", (self.total,))])]
        groups = [("by label", self.by_label), ("by speaker", self.by_speaker)]
        groups += [("all without", self.without), ("by file", self.files[:files])]
        for title, rows in groups:
            if len(rows) > 1 or (rows and title == "all without"):
                parts += ["", _table([(title, rows)])]
        if len(self.files) > files:
            parts.append(f"({len(self.files) - files:,} further files: --json lists all)")
        if self.contexts:
            parts += ["", f"bits on the same {self.context_targets:,} samples, by what was heard:"]
            parts += [f"{row.context:>10,} samples  {row.bits:.3f}" for row in self.contexts]
        elif self.no_contexts:
            parts += ["", f"Not against context length: {self.no_contexts}."]
        told = "told" if self.conditions else "not told"
        parts += ["", f"Labels and speakers were {told}; computed in {self.precision}."]
        worse = [
            row.name
            for row in self.files
            if row.floors and len(self.files) <= files and row.bits >= min(row.floors.values())
        ]
        if worse:
            parts.append(f"No better than a floor on: {', '.join(worse)}.")
        return "\n".join(parts)


def _table(groups: Sequence[tuple[str, Sequence[BitsRow]]]) -> str:
    """Rows with the model's bits, each floor's and the samples, in aligned columns."""
    lines: list[list[str]] = []
    for title, rows in groups:
        names = list(rows[0].floors)
        lines.append([title, "model", *names, "samples"])
        lines += [
            [row.name, f"{row.bits:.3f}", *(f"{row.floors[n]:.3f}" for n in names),
             f"{row.samples:,}"]
            for row in rows
        ]  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
