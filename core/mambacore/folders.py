"""Model folders on disk: `config.json` beside the weights, written whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mambacore.cache import replace_folder
from mambacore.errors import DataError, UsageError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_PICKLED = "pytorch_model.bin"
_INDEXES = (f"{WEIGHTS}.index.json", f"{_PICKLED}.index.json")


def write_folder(
    folder: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a model folder beside its place, then rename it there.

    Args:
        folder: new, empty, or a model folder with nothing else in it, which is replaced.
        config: plain values for `config.json`.
        tensors: by name; they are copied to the CPU.

    Raises:
        UsageError: the folder holds other files, which replacing it would lose.
        DataError: it cannot be written (permissions, a full disk); what was there stays whole.
    """
    target = Path(os.path.abspath(folder))
    _require_replaceable(target)
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    try:
        with replace_folder(target) as beside:
            (beside / CONFIG).write_text(text, encoding="utf-8")
            save_file(own, beside / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, as Rust says it
        raise DataError(
            f"{folder}: the model cannot be written ({error}); nothing was replaced"
        ) from error


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The values of a folder's `config.json`; DataError if there is none or it is no object."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise DataError(f"{folder} is not a model folder: it has no {CONFIG}")
    return _read_json(path)


def read_weights(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Every tensor of a folder's weights, on the CPU.

    Looks for `model.safetensors`, its sharded form with an index, `pytorch_model.bin` (read with
    ``weights_only=True``: nothing but tensors is ever unpickled) and its sharded form.

    Raises:
        DataError: none of them is there, or one is damaged; the message names the file.
    """
    root = Path(folder)
    for name in (WEIGHTS, _INDEXES[0], _PICKLED, _INDEXES[1]):
        if not (root / name).is_file():
            continue
        if name not in _INDEXES:
            return _read_tensors(root / name)
        tensors: dict[str, Tensor] = {}
        for shard in _shards(root / name):
            tensors.update(_read_tensors(shard))
        return tensors
    raise DataError(
        f"{folder} holds no weights: neither {WEIGHTS} nor {_PICKLED}, whole or sharded"
    )


def read_folder(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`read_config` and `read_weights`."""
    return read_config(folder), read_weights(folder)


def _require_replaceable(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file; name a folder to save the model to")
    names = {path.name for path in target.iterdir()}
    if names - {CONFIG, WEIGHTS} or (names and CONFIG not in names):
        other = sorted(names - {CONFIG, WEIGHTS} or names)[0]
        raise UsageError(
            f"{target} holds other files ({other}); save the model to a new or empty folder"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold one JSON object, not a {type(values).__name__}")
    return values


def _shards(index: Path) -> list[Path]:
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise DataError(f"{index} has no weight_map from tensor names to files")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if Path(name).name != name:
            raise DataError(f"{index} names {name!r}, which is not a file of its folder")
    return [index.parent / name for name in names]


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} cannot be read as weights: {reason}") from error
    if not isinstance(values, dict) or not all(isinstance(v, Tensor) for v in values.values()):
        raise DataError(f"{path} must hold a dictionary of tensors by name")
    return values
