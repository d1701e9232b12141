"""What ``mambaaudio fit`` can be told about data and model: frozen, checked, free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..options import require


@dataclass(frozen=True)
class AudioDataOptions:
    """Recordings and how they are cut into windows.

    Args:
        samples: a folder of sound files, a pattern such as 'music/*.flac', or a sample sheet (TSV
            or CSV with path and perhaps label, speaker, split). Required.
        rate: samples a second that the model works at; by default the files' own. Files at other
            rates are resampled.
        code: what a sample becomes: mulaw8, linear8, or pcm16 (two symbols, exact).
        channel: what becomes of stereo: mix (the mean), left, right, or each: both channels are
            recordings of their own, which are never split between training and validation.
        gain: level before coding: none leaves it, corpus lifts all recordings by one factor so
            that the loudest reaches full scale, file does so for each. Kept with the model and
            undone in what it generates.
        window: samples in a window, at the end of the length warm-up and in validation; labelled
            clips up to this length are read whole.
        tokens: samples a step on each device; rows of any length are batched to about this.
        clips: whether recordings are clips, read whole and followed by 0.1 s of silence and an
            end event; by default they are if they have labels and fit into a window.
        first_window: length of the shortest windows, which the training starts with; lengths
            double from there. The value of `window` switches the length warm-up off.
        length_warmup: fraction of the training before windows have their full length; 0 is off.
        speed: half of the training rows are played faster or slower, by up to this part, 0 for
            none; pitch moves along. Where there is little sound, it makes more of it.
        validation: part of the training recordings to hold out where the sheet has no val rows.
        validation_by: hold out files, or all files of some speakers.
        val_windows: validation windows (or clips) to use at most, spread evenly.
        skip_bad: leave out files that cannot be read, and list them, instead of refusing to start.
        num_workers: processes that prepare batches; 0 prepares them in the training process.
        cache: folder for the decoded samples; by default the run's own.
    """

    samples: str = ""
    rate: int | None = None
    code: Literal["mulaw8", "linear8", "pcm16"] = "mulaw8"
    channel: Literal["mix", "left", "right", "each"] = "mix"
    gain: Literal["none", "file", "corpus"] = "none"
    window: int = 8192
    tokens: int = 16384
    clips: bool | None = None
    first_window: int = 1024
    length_warmup: float = 0.0
    speed: float = 0.0
    validation: float = 0.1
    validation_by: Literal["file", "speaker"] = "file"
    val_windows: int = 32
    skip_bad: bool = False
    num_workers: int = 0
    cache: str | None = None

    def __post_init__(self) -> None:
        accepted = {
            "rate": (self.rate is None or self.rate >= 1, "at least 1 Hz"),
            "window": (self.window >= 64, "at least 64"),
            "tokens": (self.tokens >= 64, "at least 64"),
            "first_window": (self.first_window >= 64, "at least 64"),
            "length_warmup": (0 <= self.length_warmup < 1, "at least 0 and below 1"),
            "speed": (0 <= self.speed <= 0.5, "0 to 0.5"),
            "validation": (0 <= self.validation < 1, "at least 0 and below 1"),
            "val_windows": (self.val_windows >= 1, "at least 1"),
            "num_workers": (self.num_workers >= 0, "0 or more"),
        }
        for name, (good, text) in accepted.items():
            require(good, f"--data.{name}", getattr(self, name), text)


# Widths and depths; what --model.d_model and --model.n_layer replace.
PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"d_model": 16, "n_layer": 1},
    "small": {"d_model": 32, "n_layer": 2},
    "base": {"d_model": 64, "n_layer": 8},
    "large": {"d_model": 96, "n_layer": 15},
}


@dataclass(frozen=True)
class AudioModelOptions:
    """The model's architecture: levels of blocks at falling rates (a U-net).

    Args:
        preset: width and depth: tiny (16, 1), small (32, 2) for a CPU; base (64, 8, about 6 M
            parameters) and large (96, 15) for a GPU. The options below replace its values.
        d_model: width of the fastest level.
        n_layer: blocks of every stage.
        pools: positions that each level joins into one for the next slower level; two numbers
            make three levels.
        expand: growth of the width from a level to the next slower one.
        mixers: mixer of each level, fastest first, or one for all: mamba, s4d, attention.
        mixer_options: options by mixer, e.g. {mamba: {d_state: 32}}.
        unet: also blocks on the way down, before pooling.
        mlp_expand: width of a gated MLP after each mixer, in units of its width, 0 for none; one
            number for all levels, or one a level.
        dropout: probability of dropping an output of a mixer or MLP in training.
        residual_dtype: what the residual stream is kept in.
        label_dropout: probability of hiding a clip's label in training, so that the model also
            generates without one.
        speaker_dropout: likewise for speakers.
        input_noise: noise on what the model hears in training, but not on what it predicts, so
            that in generation it corrects its own errors instead of going on with them: the
            largest standard deviation in steps of the code (each row draws one); codes of one
            symbol a sample only.
        spread_penalty: weight of the squared distance (steps of the code) of what is predicted
            from what comes: makes what is drawn a little narrower than what is likely, which
            keeps long generated sound from swelling; codes of one symbol a sample only.
        jump_limit: distance (steps of the code) from what is expected at which a symbol loses
            half of its probability; nearer ones keep theirs, and further ones, each of which is a
            click when it is drawn, lose nearly all: p / (1 + (distance / jump_limit)^4). Choose
            what hardly ever happens in the recordings. 0 for no limit; codes of one symbol a
            sample only.
        init: fine-tune this model (a run folder or an exported model): its architecture, rate,
            code, gain, labels and speakers are taken over.
    """

    preset: Literal["tiny", "small", "base", "large"] = "small"
    d_model: int | None = None
    n_layer: int | None = None
    pools: tuple[int, ...] | None = None
    expand: float | None = None
    mixers: tuple[str, ...] | None = None
    mixer_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    unet: bool | None = None
    mlp_expand: float | tuple[float, ...] | None = None
    dropout: float | None = None
    residual_dtype: Literal["float32", "bfloat16", "model"] | None = None
    label_dropout: float = 0.1
    speaker_dropout: float = 0.2
    input_noise: float = 0.0
    spread_penalty: float = 0.0
    jump_limit: float = 0.0
    init: str | None = None

    def __post_init__(self) -> None:
        for name in ("label_dropout", "speaker_dropout"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"--model.{name}", value, "a probability, 0 to 1")
        noise = self.input_noise
        require(0 <= noise <= 16, "--model.input_noise", noise, "steps of the code, 0 to 16")
        spread = self.spread_penalty
        require(0 <= spread <= 1, "--model.spread_penalty", spread, "0 to 1")
        limit = self.jump_limit
        good = limit == 0 or 1 <= limit <= 256
        require(good, "--model.jump_limit", limit, "1 to 256 steps of the code, or 0 for none")

    @property
    def loss(self) -> dict[str, float]:
        """Settings of `WaveformLoss`."""
        names = ("label_dropout", "speaker_dropout", "input_noise", "spread_penalty", "jump_limit")
        return {name: getattr(self, name) for name in names}

    @property
    def given(self) -> dict[str, Any]:
        """What was said about the architecture beside the preset."""
        names = ("d_model", "n_layer", "pools", "expand", "mixers", "unet", "mlp_expand")
        names += ("dropout", "residual_dtype")
        values = {name: getattr(self, name) for name in names}
        if self.mixer_options:
            values["mixer_options"] = self.mixer_options
        return {name: value for name, value in values.items() if value is not None}

    def backbone(self) -> Mapping[str, Any]:
        """Arguments of `mambacore.MultiScaleConfig`."""
        return {**DEFAULTS, **PRESETS[self.preset], **self.given}


DEFAULTS: dict[str, Any] = {"pools": (4, 4), "mixers": ("s4d", "s4d", "mamba")}
