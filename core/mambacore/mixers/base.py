"""What every mixer has in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mambacore.errors import UsageError
from mambacore.precision import KeepsFloat32
from mambacore.segments import check_segment_ids

if TYPE_CHECKING:
    from mambacore.parallel import SequenceGroup


class Mixer(KeepsFloat32):
    """Maps a sequence to a sequence of the same shape and carries a state from chunk to chunk.

    ``forward(x, state=None, *, segment_ids=None) -> (y, state)`` with x and y of shape (batch,
    length, d_model). For a causal mixer the whole sequence, any split of it into chunks and one
    step at a time give the same outputs, to rounding. With `segment_ids` (batch, length), the
    state is reset wherever the id changes, also between the last position of one chunk and the
    first of the next; without them the chunk continues the state's segment.

    `splits` says whether the mixer can work on its part of a sequence that several processes hold;
    `sequence_group` is who they are (set by `mambacore.parallel.split_sequence`).
    """

    causal: bool = True
    splits: bool = False
    sequence_group: SequenceGroup | None = None
    constant_state: bool = False  # causal, and its state is of one size whatever the length
    casts_input: bool = False  # under autocast its first act is to cast its input
    d_model: int
    out_proj: nn.Linear

    def initial_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Any:
        """The state before the first position; the same as passing None to `forward`.

        Args:
            batch: rows.
            device: where the state lives; by default where the parameters are.
            dtype: dtype of the activations; by default that of the parameters.
        """
        raise NotImplementedError

    @torch.no_grad()
    def scale_output(self, factor: float) -> None:
        """Multiply what the mixer adds to the residual stream (at initialisation)."""
        self.out_proj.weight.mul_(factor)

    def _check(self, x: Tensor, segment_ids: Tensor | None) -> None:
        if x.dim() != 3 or x.shape[-1] != self.d_model or x.shape[1] < 1:
            raise UsageError(
                f"input has shape {tuple(x.shape)}; this mixer takes (batch, length >= 1, "
                f"{self.d_model})"
            )
        if segment_ids is not None:
            check_segment_ids(segment_ids, x.shape[0], x.shape[1])

    def _check_state(self, state: Any, kind: type, batch: int) -> None:
        if not isinstance(state, kind):
            raise UsageError(
                f"{type(self).__name__} continues a {kind.__name__}, not a "
                f"{type(state).__name__}; pass the state that it returned"
            )
        if state.segment.shape[0] != batch:
            raise UsageError(
                f"the state is of {state.segment.shape[0]} rows, the input of {batch}; "
                "use mambacore.state.select to take rows of a state"
            )

    def _check_group(self, state: Any) -> None:
        if state is not None:
            raise UsageError(
                "a sequence that is split over processes takes no state: each part's comes from "
                "the part before it; start without one, or call split_sequence(model, None) first"
            )

    def _place(
        self, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> tuple[torch.device, torch.dtype]:
        weight = self.out_proj.weight
        return torch.device(device or weight.device), dtype or weight.dtype
