"""A waveform model as a folder: `config.json` and `model.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mambaaudio.model_config import WaveformConfig
from mambacore.errors import DataError, UsageError
from mambacore.folders import CONFIG
from mambacore.model_path import find_model

if TYPE_CHECKING:
    from mambaaudio.model import WaveformModel


def model_folder(model: str | Path) -> Path:
    """The folder of a model given by path or by name; see `mambacore.model_path.find_model`.

    Raises:
        UsageError: no such folder, no such name. DataError: the folder holds no model.
    """
    return find_model(model, "mambaaudio")


def read_model_config(path: str | Path) -> WaveformConfig:
    """The configuration in a model or run folder; a DataError names the file and what is wrong."""
    from mambacore.folders import read_config

    folder = model_folder(Path(path))
    try:
        return WaveformConfig.from_dict(read_config(folder))
    except (UsageError, TypeError) as error:
        raise DataError(f"{folder / CONFIG}: {error}") from error


def save_model(model: WaveformModel, folder: Path) -> Path:
    """Write the model folder beside and rename it; see `WaveformModel.save_pretrained`."""
    from mambacore.folders import write_folder

    write_folder(folder, model.config.to_dict(), model.state_dict())
    return folder


def load_model(
    path: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> WaveformModel:
    """Read a model folder or a run folder; see `WaveformModel.from_pretrained`."""
    from mambaaudio.model import WaveformModel
    from mambacore.checkpoint import load_weights
    from mambacore.folders import read_weights

    config, folder = read_model_config(path), model_folder(path)
    tensors = read_weights(folder)
    # Built without random numbers, which a caller may have seeded for something else.
    try:
        with torch.device("meta"):
            model = WaveformModel(config)
    except UsageError as error:
        raise DataError(f"{folder / CONFIG}: {error}") from error
    model = model.to_empty(device="cpu")
    load_weights(model, tensors, str(folder))
    return model.to(device=device, dtype=dtype).eval()
