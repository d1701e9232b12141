"""Save a language model, and load one: our own folders, Hugging Face `mamba`, `mamba_ssm`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mambacore.config import ModelConfig
from mambacore.errors import DataError, UsageError
from mambacore.folders import CONFIG, read_config, read_folder, read_weights, write_folder
from mambacore.foreign import hugging_face_config, is_mamba_ssm, mamba_ssm_config
from mambacore.language_model import LanguageModel

MODEL_TYPE = "mambakit-language-model"

__all__ = ["from_pretrained", "load_weights", "read_folder", "save_pretrained", "write_folder"]


def save_pretrained(model: LanguageModel, folder: str | os.PathLike[str]) -> None:
    """Write `config.json` and `model.safetensors`, beside and renamed: whole or not at all.

    Args:
        model: saved in the dtype that its parameters have.
        folder: new, empty, or an earlier save, which is replaced.

    Raises:
        UsageError: the folder holds other files.
        DataError: it cannot be written.
    """
    config = {"model_type": MODEL_TYPE, **model.config.to_dict()}
    write_folder(folder, config, model.state_dict())


def from_pretrained(
    folder: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> LanguageModel:
    """Load a model whose ``forward(tokens, state=None)`` returns logits and state.

    Args:
        folder: one that `save_pretrained` wrote, a Hugging Face folder with ``model_type: mamba``,
            or a `mamba_ssm` folder. Weights in safetensors or pytorch_model.bin, sharded or not.
        device: where the model goes.
        dtype: of the parameters, float32 by default, whatever the file has. A_log, D and delta's
            bias stay float32 in half precision.

    Returns:
        The model, in evaluation mode.

    Raises:
        DataError: a missing or damaged file, a configuration field that changes the result and is
            not implemented (named), or weights that do not fit the configuration.

    >>> import tempfile
    >>> model = LanguageModel(ModelConfig(vocab_size=4, d_model=8)).eval()
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     save_pretrained(model, f"{parent}/model")
    ...     again = from_pretrained(f"{parent}/model")
    >>> tokens = torch.tensor([[0, 1, 2]])
    >>> torch.equal(model(tokens)[0], again(tokens)[0])
    True
    """
    raw = read_config(folder)
    source = str(Path(folder) / CONFIG)
    config, own = _model_config(raw, source)
    tensors = read_weights(folder)
    if not own:
        tensors = _renamed(tensors, config, str(folder))
    # Built without memory or random numbers: every parameter comes from the file.
    try:
        with torch.device("meta"):
            model = LanguageModel(config)
    except UsageError as error:
        raise DataError(f"{source}: {error}") from error
    model = model.to_empty(device=device)
    load_weights(model, tensors, str(folder))
    if dtype is not None:
        model = model.to(dtype)
    return model.eval()


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a model's parameters; every name and shape must fit.

    Raises:
        DataError: the first name that is missing, is not the model's, or has another shape.
    """
    own = model.state_dict()
    for name, parameter in own.items():
        if name not in tensors:
            raise DataError(f"{source}: the weights hold no {name}, which the configuration needs")
        if tensors[name].shape != parameter.shape:
            raise DataError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}; the configuration "
                f"makes it {tuple(parameter.shape)}"
            )
    for name in tensors:
        if name not in own:
            raise DataError(f"{source}: the weights hold {name}, which the model does not have")
    model.load_state_dict(dict(tensors))


def _model_config(raw: Mapping[str, Any], source: str) -> tuple[ModelConfig, bool]:
    """(configuration, whether the folder is one of ours)."""
    kind = raw.get("model_type")
    if kind == MODEL_TYPE:
        values = {name: value for name, value in raw.items() if name != "model_type"}
        try:
            return ModelConfig.from_dict(values), True
        except UsageError as error:
            raise DataError(f"{source}: {error}") from error
    if kind == "mamba":
        return hugging_face_config(raw, source), False
    if is_mamba_ssm(raw):
        return mamba_ssm_config(raw, source), False
    raise DataError(
        f"{source}: model_type {kind!r} is not a language model that is read here; accepted: "
        f"{MODEL_TYPE!r}, 'mamba' (Hugging Face), or a mamba_ssm config with d_model and n_layer"
    )


def _renamed(tensors: dict[str, Tensor], config: ModelConfig, source: str) -> dict[str, Tensor]:
    """Other projects' parameter names in ours: only the embedding's place differs."""
    names = {
        "backbone.embeddings.weight": "embedding.weight",
        "backbone.embedding.weight": "embedding.weight",
    }
    ours = {names.get(name, name): tensor for name, tensor in tensors.items()}
    if config.tie_embeddings and (head := ours.pop("lm_head.weight", None)) is not None:
        embedding = ours.get("embedding.weight")
        if embedding is None or not torch.equal(head, embedding):
            raise DataError(
                f"{source}: the configuration ties the head to the embedding, but the weights "
                "hold a lm_head.weight that differs from it"
            )
    return ours
