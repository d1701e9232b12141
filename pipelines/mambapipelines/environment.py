"""What a run was made with: versions, hardware, the command, the inputs' checksums."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "mambakit",
    "torch",
    "lightning",
    "triton",
    "numba",
    "numpy",
    "jsonargparse",
    "biopython",
    "pysam",
    "soundfile",
    "safetensors",
    "scikit-learn",
)


def rank() -> int:
    """This process's place in a distributed run, as its launcher says; 0 outside one."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def now() -> str:
    """The time as ISO 8601 with the zone, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def describe(command: list[str] | None = None) -> dict[str, Any]:
    """Versions, source, hardware and command line of this process, ready for JSON."""
    return {
        "started": now(),
        "command": shlex.join(sys.argv if command is None else command),
        "folder": os.getcwd(),
        "host": platform.node(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "source": git_state(Path(__file__).resolve().parent),
        "hardware": _hardware(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and cleanness of the checkout that `folder` lies in; None outside one."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _hardware() -> dict[str, Any]:
    import torch

    gpus = []
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
