"""What a waveform model is, apart from its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mambacore.errors import UsageError
from mambacore.multiscale import MultiScaleConfig

MODEL_TYPE = "mambaaudio-waveform-model"


@dataclass(frozen=True)
class WaveformConfig:
    """Settings of a `WaveformModel`.

    rate: of the samples that it was trained on, in Hz.
    code: "mulaw8", "linear8" or "pcm16" (see `mambaaudio.codes`).
    backbone: widths, pools and mixers. A code of several symbols a sample needs a first pool
        that is a multiple of their number.
    labels, speakers: names of the conditions; empty without conditioning.
    end_event: one symbol more, that ends a clip.
    gain: recordings were multiplied by it before coding; generated samples are divided by it.
    trained_on: facts about the training, for people to read; plain JSON values, of no effect.

    Symbols are numbered 0 .. `vocabulary` - 1: those of the code, then the end event. `start`,
    which is `vocabulary` itself, is only ever an input: it stands before a recording.
    Condition 0 is "not said", `labels[i]` is condition i + 1; likewise the speakers.

    >>> config = WaveformConfig(8000, labels=("zero", "one"), end_event=True)
    >>> config.vocabulary, config.end, config.start, config.label_id("one")
    (257, 256, 257, 2)
    """

    rate: int
    code: str = "mulaw8"
    backbone: MultiScaleConfig = field(default_factory=MultiScaleConfig)
    labels: tuple[str, ...] = ()
    speakers: tuple[str, ...] = ()
    end_event: bool = False
    gain: float = 1.0
    trained_on: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("labels", "speakers"):
            names = getattr(self, name)
            if isinstance(names, str) or not all(isinstance(n, str) and n for n in names):
                raise UsageError(f"{name} must be a list of names, not {names!r}")
            object.__setattr__(self, name, tuple(names))
            if len(set(names)) != len(names):
                raise UsageError(f"{name} must differ from each other, not {list(names)}")
        if isinstance(self.rate, bool) or not isinstance(self.rate, int) or self.rate < 1:
            raise UsageError(f"rate is {self.rate!r}; give samples a second, a whole number")
        if not isinstance(self.gain, int | float) or not 0 < self.gain < float("inf"):
            raise UsageError(f"gain is {self.gain!r}; give a number above 0")
        if self.backbone.pools[0] % self.symbols_per_sample:
            raise UsageError(
                f"the first pool is {self.backbone.pools[0]}; code {self.code!r} has "
                f"{self.symbols_per_sample} symbols a sample, so it must be a multiple of that"
            )

    @property
    def symbols_per_sample(self) -> int:
        """Symbols that one sample becomes."""
        return self._code().symbols_per_sample

    @property
    def levels(self) -> int:
        """Symbols of the code, without the end event."""
        return self._code().symbols

    @property
    def vocabulary(self) -> int:
        """V: symbols that the model scores."""
        return self.levels + self.end_event

    @property
    def end(self) -> int | None:
        """Symbol of the end event; None without one."""
        return self.levels if self.end_event else None

    @property
    def start(self) -> int:
        """Input that stands before the first symbol; never predicted."""
        return self.vocabulary

    def _code(self) -> Any:
        from mambaaudio.codes import code

        return code(self.code)

    def label_id(self, name: str | None) -> int:
        """Number of a label; 0 for None. UsageError lists the known ones."""
        return _number("label", name, self.labels)

    def speaker_id(self, name: str | None) -> int:
        """Number of a speaker; 0 for None. UsageError lists the known ones."""
        return _number("speaker", name, self.speakers)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` reads them back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            "model_type": MODEL_TYPE,
            **values,
            "backbone": self.backbone.to_dict(),
            "labels": list(self.labels),
            "speakers": list(self.speakers),
            "trained_on": dict(self.trained_on),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WaveformConfig:
        """Read what `to_dict` wrote. An unknown, missing or impossible entry is a UsageError."""
        given = dict(values)
        kind = given.pop("model_type", None)
        if kind != MODEL_TYPE:
            raise UsageError(f"model_type is {kind!r}; a waveform model has {MODEL_TYPE!r}")
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                raise UsageError(f"unknown entry {name!r}; accepted: {', '.join(known)}")
        missing = [name for name in ("rate", "code", "backbone") if name not in given]
        if missing:
            raise UsageError(f"missing entries {', '.join(missing)}")
        given["backbone"] = MultiScaleConfig.from_dict(given["backbone"])
        return cls(**given)


def _number(kind: str, name: str | None, names: tuple[str, ...]) -> int:
    if name is None:
        return 0
    if not names:
        raise UsageError(f"{kind} {name!r}: this model was trained without {kind}s; leave it out")
    if name not in names:
        raise UsageError(f"unknown {kind} {name!r}; this model knows {', '.join(names)}")
    return names.index(name) + 1
