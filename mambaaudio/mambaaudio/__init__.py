"""Audio: sound files in and out, sample codes."""

from typing import TYPE_CHECKING

from mambakernels._lazy import attach

if TYPE_CHECKING:
    from mambaaudio.codes import CODES as CODES
    from mambaaudio.codes import code as code
    from mambaaudio.generator import Generator as Generator
    from mambaaudio.model import WaveformModel as WaveformModel
    from mambaaudio.model_config import WaveformConfig as WaveformConfig
    from mambaaudio.waveform import AudioInfo as AudioInfo
    from mambaaudio.waveform import probe as probe
    from mambaaudio.waveform import read as read
    from mambaaudio.waveform import stream as stream
    from mambaaudio.writer import WaveformWriter as WaveformWriter

_NAMES = {
    "CODES": "codes",
    "code": "codes",
    "Generator": "generator",
    "WaveformConfig": "model_config",
    "WaveformModel": "model",
    "AudioInfo": "waveform",
    "probe": "waveform",
    "read": "waveform",
    "stream": "waveform",
    "WaveformWriter": "writer",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = attach(__name__, _NAMES)
