"""Audio: waveforms, codes, generation."""

from typing import TYPE_CHECKING

from mambakernels._lazy import attach

if TYPE_CHECKING:
    from mambaaudio.codes import CODES as CODES
    from mambaaudio.codes import code as code

_NAMES: dict[str, str] = {"code": "codes", "CODES": "codes"}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = attach(__name__, _NAMES)
