"""torchaudio, imported on first use: it loads only beside the torch it was built for."""

from __future__ import annotations

import importlib
from types import ModuleType


def functional() -> ModuleType:
    """`torchaudio.functional`; an ImportError names the pair of versions to install."""
    try:
        return importlib.import_module("torchaudio.functional")
    except (ImportError, OSError, RuntimeError) as error:
        import torch

        raise ImportError(
            f"torchaudio does not load beside torch {torch.__version__} ({error}); install a pair "
            "that belongs together: pip install torch==2.11.0 torchaudio==2.11.0"
        ) from error
