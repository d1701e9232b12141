"""The result of scoring a model on a split: figures, JSON, a table, and its files.

No accuracy is shown here without chance and, where there is one, the k-mer baseline.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambabio.metrics import ClassScore, Interval, Reliability
from mambacore.cache import atomic_write
from mambacore.errors import DataError


@dataclass(frozen=True)
class BaselineScore:
    """A k-mer classifier on the same windows. kind: "linear" or "naive Bayes"."""

    kind: str
    k: int
    accuracy: float
    macro_accuracy: float

    @property
    def name(self) -> str:
        """As figures and tables call it."""
        return f"{self.kind}, {self.k}-mers"


@dataclass(frozen=True)
class SubsetScore:
    """The same figures on some of the records only."""

    records: int
    windows: int
    accuracy: float
    macro_accuracy: float
    interval: Interval
    baseline_macro_accuracy: float | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How a model does on the windows of one split.

    split, window, labels: what was scored, window in bases. windows, records, bases: how much.
    accuracy: over all windows. macro_accuracy: mean recall of the classes that occur; interval:
    its 95 % bootstrap interval, resampling genomes or 50 kb blocks. f1: macro. mcc: Matthews
    correlation. chance: accuracy of guessing, 1 / classes. majority: accuracy of always calling
    the largest class. baseline: the k-mer classifier that does best on these windows, beating
    which is what the model is for; advantage: model minus baseline in macro accuracy, paired, with
    its interval; baselines: all of them. no_baseline: why there is none. n_only: macro accuracy of
    a tree that sees only the runs of N, in windows of the sequences before N was cut: how far that
    shortcut goes; None where it was not looked at. per_class: a `ClassScore`
    a label. confusion: (true, called) counts. reliability, temperature: calibration, fitted on
    validation. dropped: reason to number of records left out. excluding_near_duplicates: the
    figures without records that are nearly in the training data. trained_window: the model's.
    piece: bases of the pieces whose answers were averaged; None where windows were read whole.
    """

    split: str
    window: int
    trained_window: int
    labels: tuple[str, ...]
    windows: int
    records: int
    bases: int
    accuracy: float
    macro_accuracy: float
    interval: Interval
    f1: float
    mcc: float
    chance: float
    majority: float
    baseline: BaselineScore | None
    advantage: tuple[float, Interval] | None
    baselines: tuple[BaselineScore, ...]
    no_baseline: str | None
    per_class: tuple[ClassScore, ...]
    confusion: NDArray[np.int64]
    reliability: Reliability
    temperature: float
    dropped: Mapping[str, int]
    excluding_near_duplicates: SubsetScore | None
    both_strands: bool = False
    n_only: float | None = None
    piece: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; NaN becomes None. `from_dict` reads them back."""
        curve = self.reliability
        subset = self.excluding_near_duplicates
        return {
            "split": self.split,
            "window": self.window,
            "trained_window": self.trained_window,
            "piece": self.piece,
            "both_strands": self.both_strands,
            "labels": list(self.labels),
            "windows": self.windows,
            "records": self.records,
            "bases": self.bases,
            "accuracy": self.accuracy,
            "macro_accuracy": self.macro_accuracy,
            **_interval_entries(self.interval),
            "chance": self.chance,
            "majority": self.majority,
            "baseline": _baseline_entry(self.baseline),
            "advantage": self.advantage
            and {"macro_accuracy": self.advantage[0], **_interval_entries(self.advantage[1])},
            "baselines": [_baseline_entry(b) for b in self.baselines],
            "no_baseline": self.no_baseline,
            "n_only": self.n_only,
            "f1": self.f1,
            "mcc": self.mcc,
            "per_class": {c.label: _without(asdict(c), "label") for c in self.per_class},
            "confusion": self.confusion.tolist(),
            "calibration": {
                "ece": curve.ece,
                "temperature": self.temperature,
                "edges": curve.edges.tolist(),
                "confidence": [_number(x) for x in curve.confidence],
                "accuracy": [_number(x) for x in curve.accuracy],
                "count": curve.count.tolist(),
            },
            "dropped": dict(self.dropped),
            "excluding_near_duplicates": subset
            and {**_without(asdict(subset), "interval"), **_interval_entries(subset.interval)},
        }

    def to_json(self) -> str:
        """`to_dict` as indented JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """Read what `to_dict` wrote.

        Raises:
            DataError: an entry is missing or of another kind.
        """
        try:
            return cls(**_fields(dict(values)))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is no evaluation: {type(error).__name__}: {error}") from error

    def to_text(self) -> str:
        """A table for people; see `mambabio.evaluation_text`."""
        from mambabio.evaluation_text import evaluation_text

        return evaluation_text(self)

    def confusion_tsv(self) -> str:
        """The confusion matrix with a header; a row is a true class, a column a called one."""
        lines = ["\t".join(["true\\called", *self.labels])]
        for label, row in zip(self.labels, self.confusion.tolist(), strict=True):
            lines.append("\t".join([label, *map(str, row)]))
        return "\n".join(lines) + "\n"

    @property
    def stem(self) -> str:
        """What its files are called: split and window."""
        return f"{self.split}-{self.window}"

    @property
    def headline(self) -> str:
        """One line: macro accuracy with interval, chance and baseline."""
        i = self.interval
        beside = f"chance {self.chance:.3f}"
        if self.baseline is not None:
            beside += f"; {self.baseline.name} {self.baseline.macro_accuracy:.3f}"
        return (
            f"{self.split}, {self.window:,} bases: macro accuracy {self.macro_accuracy:.3f} "
            f"[{i.low:.3f}, {i.high:.3f}] ({beside})"
        )

    def save(self, folder: str | Path) -> list[Path]:
        """Write JSON, confusion matrix (TSV, PNG) and calibration (PNG); return their paths.

        The files are `SPLIT-WINDOW.json`, `SPLIT-WINDOW-confusion.tsv` and so on; each is
        written beside and renamed, the JSON last.
        """
        from mambabio.plots import confusion_figure, reliability_figure, save_figure

        base = Path(folder)
        base.mkdir(parents=True, exist_ok=True)
        table = base / f"{self.stem}-confusion.tsv"
        with atomic_write(table, "w") as file:
            file.write(self.confusion_tsv())
        matrix = save_figure(
            confusion_figure(self.confusion, self.labels, self.headline),
            base / f"{self.stem}-confusion.png",
        )
        diagram = reliability_figure(self.reliability, chance=self.chance)
        calibration = save_figure(diagram, base / f"{self.stem}-calibration.png")
        figures = base / f"{self.stem}.json"
        with atomic_write(figures, "w") as file:
            file.write(self.to_json() + "\n")
        return [figures, table, matrix, calibration]


def _number(x: float) -> float | None:
    return None if math.isnan(x) else float(x)


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    """All entries but one, NaN as None."""
    return {
        key: _number(value) if isinstance(value, float) else value
        for key, value in values.items()
        if key != name
    }


def _interval_entries(interval: Interval) -> dict[str, Any]:
    return {
        "interval": [interval.low, interval.high],
        "interval_confidence": interval.confidence,
        "interval_groups": interval.groups,
        "interval_smallest_class": interval.smallest,
    }


def _baseline_entry(baseline: BaselineScore | None) -> dict[str, Any] | None:
    return None if baseline is None else asdict(baseline)


def _pop_interval(values: dict[str, Any]) -> Interval:
    low, high = values.pop("interval")
    rest = [values.pop(f"interval_{x}") for x in ("confidence", "groups", "smallest_class")]
    return Interval(low, high, *rest)


def _floats(values: list[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if x is None else x for x in values], dtype=np.float64)


def _fields(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of an `Evaluation` from the entries of its JSON object."""
    values["interval"] = _pop_interval(values)
    values["labels"] = tuple(values["labels"])
    if values["baseline"] is not None:
        values["baseline"] = BaselineScore(**values["baseline"])
    if values["advantage"] is not None:
        advantage = dict(values["advantage"])
        values["advantage"] = advantage["macro_accuracy"], _pop_interval(advantage)
    values["baselines"] = tuple(BaselineScore(**b) for b in values["baselines"])
    values["per_class"] = tuple(
        ClassScore(label, s["support"], *_floats([s["precision"], s["recall"], s["f1"]]).tolist())
        for label, s in values["per_class"].items()
    )
    values["confusion"] = np.array(values["confusion"], dtype=np.int64)
    curve = values.pop("calibration")
    values["temperature"] = curve["temperature"]
    values["reliability"] = Reliability(
        np.array(curve["edges"]),
        _floats(curve["confidence"]),
        _floats(curve["accuracy"]),
        np.array(curve["count"], dtype=np.int64),
        curve["ece"],
    )
    if values["excluding_near_duplicates"] is not None:
        subset = dict(values["excluding_near_duplicates"])
        interval = _pop_interval(subset)
        values["excluding_near_duplicates"] = SubsetScore(interval=interval, **subset)
    return values
