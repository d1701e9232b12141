"""Audio: sound files, sample codes, corpora and windows of them, waveform models, generation."""

from typing import TYPE_CHECKING

from mambakernels._lazy import attach

if TYPE_CHECKING:
    from mambaaudio.codes import CODES as CODES
    from mambaaudio.codes import code as code
    from mambaaudio.corpus import Corpus as Corpus
    from mambaaudio.corpus import build_corpus as build_corpus
    from mambaaudio.generator import Generator as Generator
    from mambaaudio.model import WaveformModel as WaveformModel
    from mambaaudio.model_config import WaveformConfig as WaveformConfig
    from mambaaudio.rows import Layout as Layout
    from mambaaudio.sheet import load_samples as load_samples
    from mambaaudio.waveform import AudioInfo as AudioInfo
    from mambaaudio.waveform import probe as probe
    from mambaaudio.waveform import read as read
    from mambaaudio.waveform import stream as stream
    from mambaaudio.windows import TrainingWindows as TrainingWindows
    from mambaaudio.windows import tile_windows as tile_windows
    from mambaaudio.writer import WaveformWriter as WaveformWriter

_NAMES = {
    "CODES": "codes",
    "code": "codes",
    "Corpus": "corpus",
    "build_corpus": "corpus",
    "Generator": "generator",
    "WaveformConfig": "model_config",
    "WaveformModel": "model",
    "Layout": "rows",
    "load_samples": "sheet",
    "AudioInfo": "waveform",
    "probe": "waveform",
    "read": "waveform",
    "stream": "waveform",
    "TrainingWindows": "windows",
    "tile_windows": "windows",
    "WaveformWriter": "writer",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = attach(__name__, _NAMES)
