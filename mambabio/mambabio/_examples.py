"""Small made-up data for the examples in docstrings."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from mambabio.alphabet import Ids, decode
from mambabio.sheet import load_samples
from mambabio.store import SequenceStore, build_store


def random_ids(length: int, seed: int) -> Ids:
    """Random A, C, G, T."""
    return np.random.default_rng(seed).integers(0, 4, length).astype(np.uint8)


def example_store() -> SequenceStore:
    """Two labels with one record of 1,000 random bases each, in a temporary folder."""
    folder = Path(tempfile.mkdtemp())
    for seed, name in enumerate(("ape", "bat")):
        (folder / f"{name}.fa").write_text(f">{name}1\n{decode(random_ids(1000, seed))}\n")
    return build_store(load_samples(folder), folder / "cache", log=lambda line: None)
