"""Configurations of other projects' Mamba checkpoints, read without guessing.

Every field is on one of the lists below: honoured (it sets something here), fixed (it changes
the result, and only the values named are implemented), same (an alias that must agree) or inert
(it cannot change what a loaded model computes). Any other field is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mambacore.config import ModelConfig
from mambacore.errors import DataError, UsageError

_BOOKKEEPING = frozenset(
    {
        "_name_or_path",
        "architectures",
        "dtype",
        "id2label",
        "label2id",
        "problem_type",
        "torch_dtype",
        "transformers_version",
    }
)

# transformers.MambaConfig: what each honoured field is when absent. None: it must be there.
HF_HONOURED: dict[str, Any] = {
    "vocab_size": None,
    "hidden_size": None,
    "num_hidden_layers": None,
    "state_size": 16,
    "conv_kernel": 4,
    "expand": 2,
    "time_step_rank": "auto",
    "use_bias": False,
    "use_conv_bias": True,
    "layer_norm_epsilon": 1e-5,
    "residual_in_fp32": True,
    "tie_word_embeddings": True,
}
HF_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("mamba",),
    "hidden_act": ("silu", "swish"),
    "is_encoder_decoder": (False,),
    "rms_norm": (True,),
    "ssm_cfg": ({}, None),
    "quantization_config": (None,),
}
# Left in converted checkpoints by their origin; transformers computes with the second name.
HF_SAME = {"d_model": "hidden_size", "n_layer": "num_hidden_layers"}
HF_INERT = _BOOKKEEPING | {
    "bos_token_id",
    "chunk_size_feed_forward",
    "eos_token_id",
    "fused_add_norm",  # which kernel adds and normalises
    "initializer_range",  # this and time_step_*: starting values only
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pad_vocab_size_multiple",  # vocab_size is padded already
    # Starting values only, says its documentation. transformers 5.23 also divides the loaded
    # out_proj by sqrt(layers) when it is true; here the weights are taken as they were saved.
    "rescale_prenorm_residual",
    "return_dict",
    "time_step_floor",
    "time_step_init_scheme",
    "time_step_max",
    "time_step_min",
    "time_step_scale",
    "use_associative_scan",
    "use_cache",
    "use_mambapy",
}

# mamba_ssm.models.config_mamba.MambaConfig.
SSM_HONOURED: dict[str, Any] = {
    "d_model": None,
    "n_layer": None,
    "vocab_size": None,
    "ssm_cfg": {},
    "residual_in_fp32": True,
    "pad_vocab_size_multiple": 8,
    "tie_embeddings": True,
}
SSM_FIXED: dict[str, tuple[Any, ...]] = {
    "rms_norm": (True,),
    "d_intermediate": (0,),
    "attn_layer_idx": ([], None),
}
SSM_INERT = _BOOKKEEPING | {
    "attn_cfg",  # of the layers in attn_layer_idx, which must be empty
    "fused_add_norm",
}
# Its ssm_cfg: arguments of mamba_ssm.Mamba, by the same names as MambaMixer's.
SSM_CFG_HONOURED = ("d_state", "d_conv", "expand", "dt_rank", "conv_bias", "bias")
SSM_CFG_FIXED: dict[str, tuple[Any, ...]] = {"layer": ("Mamba1",)}
SSM_CFG_INERT = frozenset(
    {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path"}
)


def is_mamba_ssm(config: Mapping[str, Any]) -> bool:
    """A `mamba_ssm` config names no model type but has its two sizes."""
    return "model_type" not in config and "d_model" in config and "n_layer" in config


def hugging_face_config(config: Mapping[str, Any], source: str) -> ModelConfig:
    """The model of a Hugging Face folder with ``model_type: mamba``.

    Args:
        config: its `config.json`.
        source: the file's name, for messages.

    Raises:
        DataError: a field that changes the result and is not implemented, by name.
    """
    derived = ("intermediate_size", "d_inner")
    known = {*HF_HONOURED, *HF_SAME, *derived}
    _refuse(config, known, HF_FIXED, HF_INERT, source)
    values = _honoured(config, HF_HONOURED, source)
    for alias, name in HF_SAME.items():
        _require_same(config, alias, values[name], source)
    inner = int(values["expand"] * values["hidden_size"])
    for alias in derived:
        _require_same(config, alias, inner, source)
    options = {
        "d_state": values["state_size"],
        "d_conv": values["conv_kernel"],
        "expand": values["expand"],
        "dt_rank": values["time_step_rank"],
        "conv_bias": values["use_conv_bias"],
        "bias": values["use_bias"],
    }
    return _model(
        source,
        vocab_size=values["vocab_size"],
        d_model=values["hidden_size"],
        n_layer=values["num_hidden_layers"],
        mixer_options={"mamba": options},
        norm_eps=values["layer_norm_epsilon"],
        residual_dtype="float32" if values["residual_in_fp32"] else "model",
        tie_embeddings=values["tie_word_embeddings"],
    )


def mamba_ssm_config(config: Mapping[str, Any], source: str) -> ModelConfig:
    """The model of a `mamba_ssm` folder; arguments and errors as of `hugging_face_config`."""
    _refuse(config, SSM_HONOURED, SSM_FIXED, SSM_INERT, source)
    values = _honoured(config, SSM_HONOURED, source)
    options = values["ssm_cfg"] or {}
    if not isinstance(options, Mapping):
        raise DataError(f"{source}: ssm_cfg must be an object, not {options!r}")
    _refuse(options, SSM_CFG_HONOURED, SSM_CFG_FIXED, SSM_CFG_INERT, f"{source}, ssm_cfg")
    return _model(
        source,
        vocab_size=values["vocab_size"],
        d_model=values["d_model"],
        n_layer=values["n_layer"],
        mixer_options={
            "mamba": {name: options[name] for name in SSM_CFG_HONOURED if name in options}
        },
        residual_dtype="float32" if values["residual_in_fp32"] else "model",
        tie_embeddings=values["tie_embeddings"],
        pad_vocab_multiple=values["pad_vocab_size_multiple"],
    )


def _model(source: str, **values: Any) -> ModelConfig:
    try:
        return ModelConfig(**values)
    except UsageError as error:
        raise DataError(f"{source}: {error}") from error


def _honoured(config: Mapping[str, Any], table: Mapping[str, Any], source: str) -> dict[str, Any]:
    values = {}
    for name, default in table.items():
        value = config.get(name, default)
        if value is None:
            raise DataError(f"{source} does not say {name}")
        values[name] = value
    return values


def _require_same(config: Mapping[str, Any], alias: str, value: Any, source: str) -> None:
    if alias in config and config[alias] != value:
        raise DataError(
            f"{source}: {alias} is {config[alias]!r}, but the other fields make it {value!r}"
        )


def _refuse(
    config: Mapping[str, Any],
    honoured: Any,
    fixed: Mapping[str, tuple[Any, ...]],
    inert: frozenset[str] | set[str],
    source: str,
) -> None:
    for name, value in config.items():
        if name in fixed:
            if value not in fixed[name]:
                accepted = " or ".join(repr(item) for item in fixed[name])
                raise DataError(
                    f"{source}: {name} is {value!r}, which is not implemented; accepted: {accepted}"
                )
        elif name not in honoured and name not in inert:
            raise DataError(
                f"{source}: unknown field {name!r}; it may change the result, so the model is not "
                "loaded"
            )
