"""Selective scan, causal convolution, RMS norm and the decoding step, on CPU and GPU."""

from typing import TYPE_CHECKING

from mambakernels._lazy import attach

if TYPE_CHECKING:
    from mambakernels.backends import BackendUnavailable as BackendUnavailable
    from mambakernels.backends import available_backends as available_backends
    from mambakernels.conv.api import causal_conv1d as causal_conv1d
    from mambakernels.mixer.api import mamba_mixer as mamba_mixer
    from mambakernels.norm.api import rms_norm as rms_norm
    from mambakernels.scan.api import ScanSummary as ScanSummary
    from mambakernels.scan.api import scan_summary as scan_summary
    from mambakernels.scan.api import selective_scan as selective_scan
    from mambakernels.step.api import selective_state_step as selective_state_step

_NAMES: dict[str, str] = {
    "BackendUnavailable": "backends",
    "available_backends": "backends",
    "causal_conv1d": "conv.api",
    "mamba_mixer": "mixer.api",
    "rms_norm": "norm.api",
    "selective_state_step": "step.api",
    "ScanSummary": "scan.api",
    "scan_summary": "scan.api",
    "selective_scan": "scan.api",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = attach(__name__, _NAMES)
