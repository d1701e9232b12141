"""A waveform model as a folder: `config.json` and `model.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mambaaudio.model_config import WaveformConfig
from mambacore.errors import DataError, UsageError
from mambacore.folders import CONFIG

if TYPE_CHECKING:
    from mambaaudio.model import WaveformModel


def model_folder(path: Path) -> Path:
    """The model folder that `path` stands for: itself, or `model/` within a run folder.

    Raises:
        DataError: neither holds a model.
    """
    for folder in (path, path / "model"):
        if (folder / CONFIG).is_file():
            return folder
    if not path.exists():
        raise DataError(f"no model at {path}: there is no such folder")
    raise DataError(
        f"no model in {path}: neither it nor its sub-folder model/ has a {CONFIG}. Give an "
        "exported model folder, or the folder of a run that has ended"
    )


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
