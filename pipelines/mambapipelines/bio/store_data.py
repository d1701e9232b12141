"""A store's windows for Lightning, whatever is learnt on them: drawn or packed, and tiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch.utils.data import DataLoader

from mambabio.packing import PackedWindows
from mambabio.store import SequenceStore
from mambabio.windows import MINIMUM_WINDOW

from ..loading import BatchMaker, ValidationBatches, WindowBatches, loader, places_of
from ..schedule import length_stages
from ..training import StepData
from .options import WindowOptions

Convert = Callable[[Any], Any]
"""From a batch of arrays to one of tensors; a function of a module, so that workers can have it."""


class Windows(Protocol):
    """Random training windows: `TrainingWindows`, `LanguageWindows`."""

    def __init__(
        self, store: SequenceStore, *, seed: int, reverse_complement: bool, balanced: bool
    ) -> None: ...

    def batch(self, step: int, rank: int, world_size: int, batch_size: int, window: int) -> Any:
        """The windows of one rank in one step."""
        ...

    def check(self, window: int) -> None:
        """Raise `DataError` unless there are windows of that length."""
        ...


class StoreData(StepData):
    """Windows of a store, random ones to train on, packed if the options say so, and tiles.

    Args:
        store: from `mambabio.store.build_store`.
        options: how to cut it.
        windows: what draws windows where they are not packed.
        seed, balanced: of the windows or packed rows; see there.
        validation: tiles with a length and ``batch(indices)``, or None.
        convert: for batches of any of these.
    """

    unit = "bases"
    remark = ""

    def __init__(
        self,
        store: SequenceStore,
        options: WindowOptions,
        windows: type[Windows],
        validation: Any,
        convert: Convert,
        *,
        seed: int,
        balanced: bool,
    ) -> None:
        super().__init__()
        self._options = options
        self._convert = convert
        self.validation = validation
        self.workers = options.num_workers
        first = max(MINIMUM_WINDOW, min(options.first_window, options.window))
        self.stages = length_stages(options.window, options.tokens, first, options.length_warmup)
        draw = PackedWindows if options.packing else windows
        self._windows: Windows | PackedWindows = draw(
            store, seed=seed, reverse_complement=options.reverse_complement, balanced=balanced
        )
        if isinstance(self._windows, PackedWindows):
            self.remark = _packing_remark(self._windows, options.window)
        else:
            for stage in reversed(self.stages):  # a window longer than the records fails now
                self._windows.check(stage.window)

    def batch_maker(self) -> BatchMaker:
        """Training batches of this rank."""
        return WindowBatches(self._windows, self._convert, *self._place())

    def val_dataloader(self) -> DataLoader | list:
        """Validation batches of this rank; none without validation records."""
        if self.validation is None:
            return []
        batch = max(1, self._options.tokens // self._options.window)
        places = places_of(len(self.validation), *self._place(), batch)
        dataset = ValidationBatches(self.validation, places, self._convert)
        return loader(dataset, pin=self.on_gpu)


def _packing_remark(windows: PackedWindows, window: int) -> str:
    """How much padding packing spares, for the log."""
    alone = windows.unpacked_padding(window)
    packed = windows.batch(0, 0, 1, 64, window).padding
    return (
        f"packing: {packed:.1%} of the positions are padding; with a row a record, "
        f"{alone:.1%} would be"
    )
