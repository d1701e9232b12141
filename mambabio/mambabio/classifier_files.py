"""A species classifier as a folder: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mambabio.classifier_config import ClassifierConfig
from mambacore.errors import DataError, UsageError
from mambacore.model_path import find_model

if TYPE_CHECKING:
    import torch

    from mambabio.classifier import SpeciesClassifier

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def model_folder(model: str | Path) -> Path:
    """The folder of a model given by path or by name; see `mambacore.model_path.find_model`.

    Raises:
        UsageError: no such folder, no such name. DataError: the folder holds no model.
    """
    return find_model(model, "mambabio")


def read_config(folder: Path) -> ClassifierConfig:
    """The configuration in a model folder; a `DataError` names the file and what is wrong."""
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold a JSON object, not {type(values).__name__}")
    try:
        return ClassifierConfig.from_dict(values)
    except (UsageError, TypeError) as error:
        raise DataError(f"{path}: {error}") from error


def save_classifier(model: SpeciesClassifier, folder: Path) -> Path:
    """Write the model folder beside and rename it; see `SpeciesClassifier.save_pretrained`."""
    from mambacore.folders import write_folder

    write_folder(folder, model.config.to_dict(), model.state_dict())
    return folder


def load_classifier(
    path: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> SpeciesClassifier:
    """Read a model folder or a run folder; see `SpeciesClassifier.from_pretrained`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from mambabio.classifier import SpeciesClassifier

    folder = model_folder(path)
    config = read_config(folder)
    file = folder / WEIGHTS_FILE
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file} cannot be read as safetensors: {error}") from error
    try:
        model = SpeciesClassifier(config)
    except UsageError as error:
        raise DataError(f"{folder / CONFIG_FILE}: {error}") from error
    _fit(model, weights, file)
    return model.to(device=device, dtype=dtype).eval()


def _fit(model: SpeciesClassifier, weights: dict[str, torch.Tensor], file: Path) -> None:
    """Load the weights; what is missing, left over or of another shape is named."""
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in weights]
    problems += [f"{name} is not part of the model" for name in weights if name not in expected]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(f"{file} does not fit its {CONFIG_FILE}: {problems[0]}{more}")
    model.load_state_dict(weights, assign=True)  # as stored: every weight keeps its dtype
