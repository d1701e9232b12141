"""DNA: sequence files, tokenizers, windows, species classification."""

from typing import TYPE_CHECKING

from mambakernels._lazy import attach

if TYPE_CHECKING:
    pass

_NAMES: dict[str, str] = {}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = attach(__name__, _NAMES)
