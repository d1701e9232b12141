"""Selective scan, causal convolution, RMS norm and the decoding step, on CPU and GPU."""

from typing import TYPE_CHECKING

from mambakernels._lazy import attach

if TYPE_CHECKING:
    from mambakernels.backends import BackendUnavailable as BackendUnavailable
    from mambakernels.backends import available_backends as available_backends
    from mambakernels.scan.api import ScanSummary as ScanSummary
    from mambakernels.scan.api import scan_summary as scan_summary
    from mambakernels.scan.api import selective_scan as selective_scan

_NAMES: dict[str, str] = {
    "BackendUnavailable": "backends",
    "available_backends": "backends",
    "ScanSummary": "scan.api",
    "scan_summary": "scan.api",
    "selective_scan": "scan.api",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = attach(__name__, _NAMES)
