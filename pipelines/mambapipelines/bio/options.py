"""What ``mambabio fit`` can be told about data and model: frozen, checked, free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mambacore.config import ModelConfig

from ..options import require


@dataclass(frozen=True)
class WindowOptions:
    """Sequences and how they are cut into windows: what every training on DNA has.

    Args:
        samples: sample sheet (TSV or CSV with label, path and perhaps split, region, circular) or
            a folder whose files or sub-folders are the labels, or one that `mambabio prepare`
            made. Required.
        window: bases in a window, at the end of the length warm-up and in validation.
        tokens: bases a step on each device; windows of any length are batched to about this.
        first_window: length of the shortest windows, which the training starts with; lengths
            double from there. The value of `window` switches the length warm-up off.
        length_warmup: fraction of the training before windows have their full length.
        validation: part of the training records to hold out where the sheet has no val rows.
        val_windows: validation windows to use at most, spread evenly.
        reverse_complement: give half of the training windows as their reverse complement.
        packing: fill training rows of `window` bases with several records, which do not mix: for
            records that are shorter than the window.
        num_workers: processes that prepare batches; 0 prepares them in the training process,
            which is fastest on a CPU.
        cache: folder for the encoded sequences; by default the run's own.
    """

    samples: str = ""
    window: int = 1024
    tokens: int = 8192
    first_window: int = 128
    length_warmup: float = 0.75
    validation: float = 0.1
    val_windows: int = 512
    reverse_complement: bool = True
    packing: bool = False
    num_workers: int = 0
    cache: str | None = None

    def __post_init__(self) -> None:
        accepted = {
            "window": (self.window >= 64, "at least 64"),
            "tokens": (self.tokens >= 64, "at least 64"),
            "first_window": (self.first_window >= 64, "at least 64"),
            "length_warmup": (0 <= self.length_warmup < 1, "at least 0 and below 1"),
            "validation": (0 <= self.validation < 1, "at least 0 and below 1"),
            "val_windows": (self.val_windows >= 1, "at least 1"),
            "num_workers": (self.num_workers >= 0, "0 or more"),
        }
        for name, (good, text) in accepted.items():
            require(good, f"--data.{name}", getattr(self, name), text)


@dataclass(frozen=True)
class DataOptions(WindowOptions):
    """Sequences and how they are cut into windows.

    Args:
        n_policy: what happens to runs of N: cut joins what is left, split makes pieces, keep
            reads N as a letter.
        baselines: also fit the k-mer baselines that the model has to beat, after the training.
    """

    n_policy: Literal["cut", "split", "keep"] = "cut"
    baselines: bool = True


# Words of 8 bases tell species apart, and a convolution of that width sees them at once.
DNA_OPTIONS: dict[str, dict[str, Any]] = {"mamba": {"d_conv": 8, "d_state": 8}}


@dataclass(frozen=True)
class BackboneOptions:
    """What a model on DNA is built of.

    Args:
        d_model: width of the residual stream.
        n_layer: number of blocks.
        mixer: what mixes positions: mamba, s4d, attention or bidirectional.
        layers: mixer of each layer, in place of `mixer`.
        mixer_options: options by mixer, e.g. {mamba: {d_state: 32}}; where mamba's are not given
            it has a convolution of 8 bases and 8 states, which classify better than 4 and 16.
        mlp_expand: width of a gated MLP after each mixer, in units of d_model; 0 for none.
        dropout: probability of dropping an output of a mixer or MLP in training.
        residual_dtype: what the residual stream is kept in.
    """

    d_model: int = 64
    n_layer: int = 2
    mixer: str = "mamba"
    layers: tuple[str, ...] | None = None
    mixer_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    mlp_expand: float = 0.0
    dropout: float = 0.0
    residual_dtype: Literal["float32", "bfloat16", "model"] = "float32"

    @property
    def options_of_mixers(self) -> dict[str, dict[str, Any]]:
        """`mixer_options`, completed by what suits DNA, for the mixers that the layers use."""
        used = set(self.layers or (self.mixer,))
        chosen = {name: dict(options) for name, options in DNA_OPTIONS.items() if name in used}
        for name, options in self.mixer_options.items():
            chosen[name] = {**chosen.get(name, {}), **options}
        return chosen

    def model_config(self, vocab_size: int | None = None) -> ModelConfig:
        """The backbone's configuration, or with a vocabulary a language model's."""
        return ModelConfig(
            vocab_size=vocab_size,
            d_model=self.d_model,
            n_layer=self.n_layer,
            mixer=self.mixer,
            layers=self.layers,
            mixer_options=self.options_of_mixers,
            mlp_expand=self.mlp_expand,
            dropout=self.dropout,
            residual_dtype=self.residual_dtype,
        )


@dataclass(frozen=True)
class ModelOptions(BackboneOptions):
    """The classifier's architecture.

    Args:
        pooling: how positions become one vector.
        head_dropout: probability of dropping a feature before the head in training.
        both_strands: let predictions average both strands by default.
        label_smoothing: share of the target's probability that is spread over all classes.
        init: run or model folder of a language model (`mambabio pretrain`) whose embedding and
            backbone the training starts from; d_model, layers and mixers must be the same.
    """

    pooling: Literal["mean", "last", "max"] = "mean"
    head_dropout: float = 0.0
    both_strands: bool = False
    label_smoothing: float = 0.0
    init: str | None = None

    def __post_init__(self) -> None:
        require(
            0 <= self.label_smoothing < 1,
            "--model.label_smoothing",
            self.label_smoothing,
            "at least 0 and below 1",
        )
