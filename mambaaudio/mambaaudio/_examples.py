"""Small made-up data for the examples in docstrings."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mambaaudio.corpus import Corpus, build_corpus
from mambaaudio.sheet import load_samples
from mambaaudio.synth import write_notes


def example_corpus() -> Corpus:
    """Ten notes of 0.4 s at 8 kHz, with labels and speakers, in a temporary folder."""
    folder = Path(tempfile.mkdtemp())
    sheet = load_samples(write_notes(folder, takes=1))
    return build_corpus(sheet, folder / "cache", validation=0, log=lambda line: None)
