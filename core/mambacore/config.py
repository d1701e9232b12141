"""What a model is made of, as one frozen, strictly read value. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mambacore.errors import UsageError

RESIDUAL_DTYPES = ("float32", "bfloat16", "model")


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a backbone and, with a vocabulary, of a language model.

    Args:
        vocab_size: number of token ids; None for a backbone that is fed vectors.
        d_model: width of the residual stream.
        n_layer: number of blocks.
        mixer: name of every layer's mixer (see `mambacore.mixer_names()`).
        layers: mixer name per layer, `n_layer` of them, in place of `mixer`.
        mixer_options: options by mixer name, e.g. ``{"mamba": {"d_state": 32}}``.
        norm_eps: epsilon of the RMS norms.
        residual_dtype: what the residual stream is kept in: "float32" (float64 in a float64
            model), "bfloat16", or "model" for the dtype of the activations.
        mlp_expand: hidden width of a gated MLP after each mixer, in units of d_model; 0 for none.
        dropout: probability of dropping an output of a mixer or MLP while training, in [0, 1).
        tie_embeddings: the language model's head uses the embedding's weight.
        pad_vocab_multiple: rows of the embedding are padded to a multiple of this; logits are not.

    Raises:
        UsageError: a value out of range, or a `layers` whose length is not n_layer.

    Names of mixers and their options are checked when the model is built, because mixers may be
    registered later.

    >>> ModelConfig(vocab_size=16, d_model=32, n_layer=2, layers=("mamba", "s4d")).layer_names
    ('mamba', 's4d')
    >>> ModelConfig.from_dict({"d_modle": 32})
    Traceback (most recent call last):
    ...
    mambacore.errors.UsageError: unknown model setting 'd_modle'; accepted: vocab_size, d_model, \
n_layer, mixer, layers, mixer_options, norm_eps, residual_dtype, mlp_expand, dropout, \
tie_embeddings, pad_vocab_multiple
    """

    vocab_size: int | None = None
    d_model: int = 64
    n_layer: int = 2
    mixer: str = "mamba"
    layers: tuple[str, ...] | None = None
    mixer_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    norm_eps: float = 1e-5
    residual_dtype: str = "float32"
    mlp_expand: float = 0.0
    dropout: float = 0.0
    tie_embeddings: bool = True
    pad_vocab_multiple: int = 1

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layer", "pad_vocab_multiple"):
            _require_count(name, getattr(self, name))
        if self.vocab_size is not None:
            _require_count("vocab_size", self.vocab_size)
        if self.layers is not None:
            if isinstance(self.layers, str) or not all(isinstance(n, str) for n in self.layers):
                raise UsageError(f"layers must be a list of mixer names, not {self.layers!r}")
            object.__setattr__(self, "layers", tuple(self.layers))
            if len(self.layers) != self.n_layer:
                raise UsageError(
                    f"layers names {len(self.layers)} mixers but n_layer is {self.n_layer}; "
                    "give one name a layer"
                )
        if not isinstance(self.mixer_options, Mapping) or not all(
            isinstance(name, str) and isinstance(options, Mapping)
            for name, options in self.mixer_options.items()
        ):
            raise UsageError(
                "mixer_options must map a mixer's name to its options, e.g. "
                f"{{'mamba': {{'d_state': 32}}}}, not {self.mixer_options!r}"
            )
        unused = sorted(set(self.mixer_options) - set(self.layer_names))
        if unused:
            raise UsageError(
                f"mixer_options holds options for {unused[0]!r}, which no layer uses; "
                f"the layers use {', '.join(sorted(set(self.layer_names)))}"
            )
        _require_range("norm_eps", self.norm_eps, 0.0, 1.0)
        _require_range("mlp_expand", self.mlp_expand, 0.0, 64.0)
        _require_range("dropout", self.dropout, 0.0, 1.0)
        if self.residual_dtype not in RESIDUAL_DTYPES:
            raise UsageError(
                f"residual_dtype {self.residual_dtype!r} is not one of {', '.join(RESIDUAL_DTYPES)}"
            )

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The mixer's name of every layer."""
        return self.layers if self.layers is not None else (self.mixer,) * self.n_layer

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding; raises UsageError without a vocabulary."""
        if self.vocab_size is None:
            raise UsageError("this model needs vocab_size: the number of token ids")
        multiple = self.pad_vocab_multiple
        return math.ceil(self.vocab_size / multiple) * multiple

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` gives the same config back."""
        values = dataclasses.asdict(self)
        if self.layers is not None:
            values["layers"] = list(self.layers)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Read what `to_dict` wrote; an unknown key is a UsageError."""
        names = [item.name for item in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise UsageError(f"unknown model setting {name!r}; accepted: {', '.join(names)}")
        return cls(**values)


def _require_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} must be a whole number of at least 1, not {value!r}")


def _require_range(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
        raise UsageError(f"{name} must be at least {low:g} and below {high:g}, not {value!r}")
