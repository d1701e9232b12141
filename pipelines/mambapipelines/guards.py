"""What keeps a long training from being lost: bad steps skipped, failures said in one message."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mambacore.errors import DataError

from .options import TrainerOptions


class StepGuard(Callback):
    """Clips gradients; skips a step whose loss or gradient is not finite, and counts it.

    A skipped step leaves parameters and the optimiser's state as they are; its number, and with it
    the schedules and the data, go on. With a fused optimiser (`optimizers.adamw` on a GPU) the
    decision stays on the device: nothing waits for it. The counts are read when metrics are
    written, and too many bad steps in a row end the training there. With 16-mixed the gradient
    scaler skips, as it must while it looks for its scale, and nothing is counted.

    The gradients decide, which are the same on all ranks; the loss too where there is one rank.

    Args:
        options: gradient_clip_val and max_skipped_steps.
        last: the checkpoint that a stopped training leaves.
    """

    def __init__(self, options: TrainerOptions, last: Path) -> None:
        self._options = options
        self._last = last
        self._loss: Tensor | None = None
        # Bad steps in all, and in a row; on the device once a fused optimiser was seen.
        self._skipped: Tensor | int = 0
        self._in_a_row: Tensor | int = 0
        self._norm: Tensor | None = None

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Of the accumulated batches, any may spoil the step."""
        if trainer.world_size == 1:
            loss = loss.detach()
            self._loss = loss if self._loss is None else self._loss + loss

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """All gradients of the step are there."""
        loss, self._loss = self._loss, None
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        norm = self._norm = get_total_norm(gradients)
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            bad = ~torch.isfinite(norm if loss is None else norm + loss)
            if _is_fused(optimizer):
                optimizer.found_inf = bad.float()
                self._skipped = self._skipped + bad.long()
                self._in_a_row = (self._in_a_row + 1) * bad.long()
            elif bad:
                optimizer.zero_grad(set_to_none=True)  # what has no gradient is left alone
                self._skipped, self._in_a_row = self._skipped + 1, self._in_a_row + 1
                return
            else:
                self._in_a_row = 0
        if self._options.gradient_clip_val:
            clip_grads_with_norm_(parameters, self._options.gradient_clip_val, norm)

    def figures(self) -> dict[str, float]:
        """For metrics.csv: skipped steps so far, and the last gradient's norm before clipping."""
        figures: dict[str, float] = {"train/skipped_steps": int(self._skipped)}
        if self._norm is not None:
            figures["train/gradient_norm"] = float(self._norm)
        return figures

    def check(self, step: int) -> None:
        """Raise DataError after too many bad steps in a row."""
        most, count = self._options.max_skipped_steps, int(self._in_a_row)
        if most and count >= most:
            raise DataError(
                f"the loss or its gradient was not finite in the last {count} steps, up to step "
                f"{step}; none of them was applied. The last good state is {self._last}. Start "
                "again with a lower --optimizer.lr, a longer --optimizer.warmup or "
                "--trainer.precision 32-true, or look at the data."
            )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"skipped": int(self._skipped), "in_a_row": int(self._in_a_row)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]


def _is_fused(optimizer: Any) -> bool:
    """The optimiser's step reads `found_inf` on the device, and then changes nothing."""
    supports = getattr(optimizer, "_step_supports_amp_scaling", False)
    return supports and all(group.get("fused") for group in optimizer.param_groups)


_WORKER = re.compile(r"Caught (\w+) in DataLoader worker process \d+\.")
_DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\)")


_LOST = re.compile(r"torch/multiprocessing/reductions\.py$")


def _where(error: BaseException) -> str:
    """The file that hands tensors over between processes, if the error came from there."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if _LOST.search(frame.f_code.co_filename):
            return frame.f_code.co_filename
    return ""


def explain_loading(error: BaseException) -> DataError | None:
    """What is wrong with the loading of data, in a sentence or two; None for any other error.

    A worker's own error comes with its whole traceback as its text; a worker that dies leaves only
    its number.

    >>> print(explain_loading(RuntimeError("DataLoader worker (pid 7) exited unexpectedly.")))
    a data-loading worker died (exited unexpectedly); most often memory has run out: use \
fewer --data.num_workers, or shorter windows. The last checkpoint is whole.
    """
    text = str(error)
    if isinstance(error, OSError | EOFError) and _where(error):
        text = "DataLoader worker (pid 0) ended in the middle of a batch"
    if found := _DEAD.search(text):
        how = text[found.end() :].strip().splitlines()[0].rstrip(".")
        return DataError(
            f"a data-loading worker died ({how}); most often memory has run out: use fewer "
            "--data.num_workers, or shorter windows. The last checkpoint is whole."
        )
    if found := _WORKER.match(text):
        name = found[1]
        last = text.strip().splitlines()[-1]
        message = last.split(": ", 1)[1] if re.match(rf"[\w.]*{name}: ", last) else last
        if isinstance(error, DataError | OSError):
            return DataError(message)
    return None
