"""Which implementation serves: the names, the choice by device, the reason when one cannot."""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path

import torch

NAMES = ("cpu", "triton", "reference")
_FOLDER = Path(__file__).resolve().parent


class BackendUnavailable(ValueError):
    """A backend was asked for by name and cannot run here; the message says why."""


def _why_no_numba() -> str | None:
    if importlib.util.find_spec("numba") is None:
        return "the package numba is not installed: `pip install numba`"
    return None


def _why_no_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (it exists for Linux): `pip install triton`"
    return None


# Settled on import, because torch.compile must be able to read the choice as a constant.
# Triton reads TRITON_INTERPRET when it is imported, so that a later change has no effect there.
_NO_NUMBA = _why_no_numba()
_NO_TRITON = _why_no_triton()
_INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
_WITH_TRITON = frozenset(path.parent.name for path in _FOLDER.glob("*/triton.py"))


def _why_not(name: str, device: str, operation: str) -> str | None:
    """Why the backend `name` cannot run `operation` on a tensor of this device; None if it can."""
    if name == "cpu":
        if device != "cpu":
            return f"it takes CPU tensors and these are on {device}: move them with .cpu()"
        return _NO_NUMBA
    if name == "triton":
        if _NO_TRITON is not None:
            return _NO_TRITON
        if operation not in _WITH_TRITON:
            return f"the operation {operation!r} has no Triton kernel in this version"
        if device != "cuda" and not _INTERPRET:
            return (
                f"it takes CUDA tensors and these are on {device}: move them with .cuda(), or set "
                "TRITON_INTERPRET=1 before Python starts to interpret the kernels (slow)"
            )
    return None


def choose(requested: str | None, device: str, operation: str) -> str:
    """The backend that runs `operation` ("scan", "conv", "norm", "step") on tensors of a device.

    requested: one of `NAMES`, or None for the fastest one that can run.
    device: the tensors' device type, as in ``tensor.device.type``.
    Raises ValueError for an unknown name and `BackendUnavailable` for one that cannot run.
    """
    if requested is None:
        fastest = "triton" if device == "cuda" else "cpu"
        reason = _why_not(fastest, device, operation)
        if reason is None:
            return fastest
        warnings.warn(
            f"mambakernels runs {operation!r} with the slow reference backend: {reason}",
            RuntimeWarning,
            stacklevel=3,
        )
        return "reference"
    if requested not in NAMES:
        raise ValueError(
            f"backend={requested!r} is unknown: use one of {', '.join(NAMES)}, or None to choose "
            "by device"
        )
    reason = _why_not(requested, device, operation)
    if reason is not None:
        raise BackendUnavailable(f"backend={requested!r} cannot run {operation!r} here: {reason}")
    return requested


def available_backends() -> dict[str, str]:
    """Each backend's name with "available", or the reason why it cannot run on this machine.

    >>> from mambakernels import available_backends
    >>> available_backends()["reference"]
    'available'
    """
    answer = {"cpu": _NO_NUMBA or "available", "reference": "available"}
    if _NO_TRITON is not None:
        answer["triton"] = _NO_TRITON
    elif not _WITH_TRITON:
        answer["triton"] = "no operation has a Triton kernel in this version"
    elif torch.cuda.is_available() or _INTERPRET:
        answer["triton"] = "available"
    else:
        answer["triton"] = "no CUDA GPU is visible to torch (TRITON_INTERPRET=1 interprets, slowly)"
    return {name: answer[name] for name in NAMES}
