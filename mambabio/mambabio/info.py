"""What a saved classifier is, read from its folder without building it."""

from __future__ import annotations

import json
import math
import struct
from os import PathLike
from pathlib import Path
from typing import Any

from mambacore.errors import DataError
from mambacore.inputs import file_sha256


def describe(folder: str | PathLike[str]) -> dict[str, Any]:
    """Facts about the model in a model folder or a run folder, as plain JSON values.

    Returns:
        A dictionary with: path, labels, classes, window, pooling, n_policy, both_strands,
        temperature, parameters (their number), dtypes, mixers (one a layer), d_model, layers,
        trained_on (what the training noted), weights_sha256, weights_bytes.

    Raises:
        DataError: no model there, or its files are damaged.
    """
    # These import torch's neighbours only through the configuration, never torch itself.
    from mambabio.classifier_files import WEIGHTS_FILE, model_folder, read_config

    place = model_folder(Path(folder))
    config = read_config(place)
    weights = place / WEIGHTS_FILE
    tensors = _safetensors_header(weights)
    return {
        "path": str(place),
        "labels": list(config.labels),
        "classes": len(config.labels),
        "window": config.window,
        "pooling": config.pooling,
        "n_policy": config.n_policy,
        "both_strands": config.both_strands,
        "temperature": config.temperature,
        "parameters": sum(math.prod(t["shape"]) for t in tensors.values()),
        "dtypes": sorted({t["dtype"] for t in tensors.values()}),
        "mixers": list(config.model.layer_names),
        "d_model": config.model.d_model,
        "layers": config.model.n_layer,
        "trained_on": dict(config.trained_on),
        "weights_sha256": file_sha256(weights),
        "weights_bytes": weights.stat().st_size,
    }


def _safetensors_header(path: Path) -> dict[str, Any]:
    """Names, types and shapes: a little-endian length, then that much JSON."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(size))
    except (OSError, ValueError, struct.error) as error:
        raise DataError(f"{path} cannot be read as safetensors: {error}") from error
    header.pop("__metadata__", None)
    return header
