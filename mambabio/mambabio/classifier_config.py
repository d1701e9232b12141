"""What a species classifier is, apart from its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from mambabio.alphabet import VOCAB_SIZE
from mambabio.store import NPolicy
from mambacore.config import ModelConfig
from mambacore.errors import UsageError

PoolingKind = Literal["mean", "last", "max"]

MODEL_TYPE = "mambabio-species-classifier"


@dataclass(frozen=True)
class ClassifierConfig:
    """Settings of a `SpeciesClassifier`.

    model: the backbone's; its vocabulary is the nucleotides', so `vocab_size` is None or 16.
    labels: class names; a class id is a place among them (training sorts them).
    window: bases in a window, the length that the model was trained on.
    pooling: "mean", "last" or "max" over a window's positions.
    head_dropout: of the pooled vector, in [0, 1).
    both_strands: whether prediction averages both strands unless told otherwise.
    n_policy: what prediction does with N, as training did: "cut" leaves every N out, "split"
        ends a window there, "keep" reads it as a letter.
    temperature: the logits are divided by it before the softmax; above 0.
    trained_on: facts about the training, for people to read (records, bases, sha256 of the
        inputs); plain JSON values, of no effect.

    >>> ClassifierConfig(ModelConfig(d_model=32), labels=("ape", "bat")).window
    1024
    """

    model: ModelConfig
    labels: tuple[str, ...]
    window: int = 1024
    pooling: PoolingKind = "mean"
    head_dropout: float = 0.0
    both_strands: bool = False
    n_policy: NPolicy = "cut"
    temperature: float = 1.0
    trained_on: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.model.vocab_size not in (None, VOCAB_SIZE):
            raise UsageError(
                f"model.vocab_size is {self.model.vocab_size}; a species classifier reads "
                f"{VOCAB_SIZE} token ids: leave it out or give {VOCAB_SIZE}"
            )
        if len(self.labels) < 2 or not all(isinstance(x, str) and x for x in self.labels):
            raise UsageError(f"labels must be two or more names, not {list(self.labels)}")
        if len(set(self.labels)) != len(self.labels):
            raise UsageError(f"labels must differ from each other, not {list(self.labels)}")
        if self.window < 1:
            raise UsageError(f"window is {self.window}; give a number of bases, at least 1")
        for name, value, accepted in (
            ("pooling", self.pooling, get_args(PoolingKind)),
            ("n_policy", self.n_policy, get_args(NPolicy)),
        ):
            if value not in accepted:
                raise UsageError(f"{name} is {value!r}; accepted are {', '.join(accepted)}")
        if not 0 <= self.head_dropout < 1:
            raise UsageError(f"head_dropout is {self.head_dropout}; accepted is 0 to below 1")
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"temperature is {self.temperature}; give a number above 0")

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` reads them back."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "model"}
        return {
            "model_type": MODEL_TYPE,
            **values,
            "labels": list(self.labels),
            "trained_on": dict(self.trained_on),
            "model": self.model.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClassifierConfig:
        """Read what `to_dict` wrote. An unknown, missing or impossible entry is a `UsageError`."""
        given = dict(values)
        kind = given.pop("model_type", None)
        if kind != MODEL_TYPE:
            raise UsageError(f"model_type is {kind!r}; a species classifier has {MODEL_TYPE!r}")
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise UsageError(
                f"unknown entries {', '.join(unknown)}; accepted are {', '.join(sorted(known))}"
            )
        missing = [name for name in ("model", "labels", "window") if name not in given]
        if missing:
            raise UsageError(f"missing entries {', '.join(missing)}")
        given["model"] = ModelConfig.from_dict(given["model"])
        return cls(**given)
