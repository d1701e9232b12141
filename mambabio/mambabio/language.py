"""Language models on DNA: batches of bases and the base that follows each, and what comes of them.

Shapes: B rows a batch, L bases a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mambabio.alphabet import PAD, T
from mambabio.sheet import Split
from mambabio.store import SequenceStore
from mambabio.windows import TrainingWindows, WindowSet, tile_windows
from mambacore.errors import DataError
from mambacore.inputs import file_sha256

if TYPE_CHECKING:
    from mambabio.classifier import SpeciesClassifier
    from mambacore.config import ModelConfig

SCORED = T + 1
"""Targets below this (A, C, G, T) count in the loss; N, IUPAC codes and padding do not."""


class LanguageBatch(NamedTuple):
    """tokens: (B, L) uint8. targets: (B, L) uint8, the base after each; `PAD` where there is none
    or where it does not count. segments: (B, L) int32 for packed rows, None otherwise."""

    tokens: NDArray[np.uint8]
    targets: NDArray[np.uint8]
    segments: NDArray[np.int32] | None = None


def scored(targets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Targets with everything but A, C, G and T turned into `PAD`."""
    return np.where(targets < SCORED, targets, np.uint8(PAD))


class LanguageWindows:
    """Random training windows with the base that follows each, a function of (seed, step, row).

    Drawn as `mambabio.windows.TrainingWindows` draws, among all training positions alike or, with
    `balanced`, every label equally often. A window never joins two records, so with N runs split
    it never crosses one.

    Args:
        store: from `build_store`.
        seed: any integer.
        reverse_complement: give half of the windows as their reverse complement.
        balanced: draw the label first; every label then needs a record as long as the window.

    >>> from mambabio._examples import example_store
    >>> batch = LanguageWindows(example_store(), seed=1).batch(0, 0, 1, batch_size=3, window=64)
    >>> batch.tokens.shape, bool((batch.tokens[:, 1:] == batch.targets[:, :-1]).all())
    ((3, 64), True)
    """

    def __init__(
        self,
        store: SequenceStore,
        *,
        seed: int,
        reverse_complement: bool = True,
        balanced: bool = False,
    ) -> None:
        self._windows = TrainingWindows(
            store, seed=seed, reverse_complement=reverse_complement, balanced=balanced
        )

    def batch(
        self, step: int, rank: int, world_size: int, batch_size: int, window: int
    ) -> LanguageBatch:
        """The windows of one rank in one step; see `TrainingWindows.batch`."""
        ids = self._windows.batch(step, rank, world_size, batch_size, window + 1).tokens
        return LanguageBatch(ids[:, :-1], scored(ids[:, 1:]))

    def check(self, window: int) -> None:
        """Raise `DataError` unless there are windows of that length."""
        self._windows.check(window + 1)


class LanguageTiles:
    """Windows of a split's records side by side: what they score, they score once.

    The first base of a record is nobody's target; the rest at a record's end that fills no window
    is left out, as `tile_windows` does.

    Args:
        store: from `build_store`. split: whose records. window: bases a row.
        most: windows to use at most, spread evenly over all.

    >>> from mambabio._examples import example_store
    >>> tiles = LanguageTiles(example_store(), "train", 250)
    >>> len(tiles), tiles.batch([0]).targets.shape
    (6, (1, 250))
    """

    def __init__(
        self, store: SequenceStore, split: Split, window: int, *, most: int | None = None
    ) -> None:
        tiles = tile_windows(store, split, window)
        self._tiles: WindowSet = tiles if most is None else tiles.spread(most)

    def __len__(self) -> int:
        return len(self._tiles)

    def batch(self, indices: Sequence[int] | NDArray[np.int64] | slice) -> LanguageBatch:
        """The windows at some places, padded at the right."""
        tiles = self._tiles
        tokens = tiles.batch(indices).tokens
        targets = np.full_like(tokens, PAD)
        targets[:, :-1] = tokens[:, 1:]
        ids = tiles.store.all_ids
        for row, i in zip(targets, np.arange(len(tiles))[indices].tolist(), strict=True):
            record = tiles.store.records[tiles.record[i]]
            end = int(tiles.start[i] + tiles.length[i])
            if end < record.length:
                row[tiles.length[i] - 1] = ids[record.offset + end]
        return LanguageBatch(tokens, scored(targets))


def start_from(classifier: SpeciesClassifier, folder: str | PathLike[str]) -> dict[str, Any]:
    """Give a classifier the embedding and the backbone of a pretrained language model.

    Args:
        classifier: its weights are replaced, its head's are not.
        folder: of the language model, or of the run that made it.

    Returns:
        Facts to note: the folder and the SHA-256 of its weights.

    Raises:
        DataError: no language model there, or one of another architecture; the message names
            what differs and the option to give.
    """
    from mambabio.classifier_files import WEIGHTS_FILE, model_folder
    from mambacore.checkpoint import from_pretrained

    place = model_folder(Path(folder))
    language = from_pretrained(place)
    difference = _difference(language.config, classifier.config.model)
    if language.vocab_size != classifier.embedding.num_embeddings:
        difference = f"it reads {language.vocab_size} token ids, not DNA's 16"
    if difference:
        raise DataError(f"--model.init {folder} does not fit this classifier: {difference}.")
    classifier.embedding.weight.data.copy_(language.embedding.weight[: language.vocab_size])
    classifier.backbone.load_state_dict(language.backbone.state_dict())
    return {"path": str(place), "sha256": file_sha256(place / WEIGHTS_FILE)}


_NO_MATTER = ("backend", "recompute")


def _difference(one: ModelConfig, other: ModelConfig) -> str:
    """What two backbones differ in that weights cannot cross; empty if nothing."""
    for name in ("d_model", "n_layer", "layer_names", "mixer_options", "mlp_expand", "norm_eps"):
        a, b = getattr(one, name), getattr(other, name)
        if name == "mixer_options":
            a, b = (
                {
                    mixer: {k: v for k, v in options.items() if k not in _NO_MATTER}
                    for mixer, options in value.items()
                }
                for value in (a, b)
            )
        if a != b:
            option = {"layer_names": "layers", "norm_eps": None}.get(name, name)
            shown = list(a) if isinstance(a, tuple) else a
            advice = f"; give --model.{option} {shown}" if option else ""
            return f"its {name} is {shown}, here {list(b) if isinstance(b, tuple) else b}{advice}"
    return ""
