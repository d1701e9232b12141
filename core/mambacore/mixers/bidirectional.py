"""A causal mixer run from both ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mambacore.errors import UsageError
from mambacore.mixers.base import Mixer
from mambacore.mixers.registry import build_mixer, register_mixer


@register_mixer("bidirectional")
class BidirectionalMixer(Mixer):
    """Sum of a causal mixer's output and of another's on the reversed sequence.

    ``y = left(x) + reverse(right(reverse(x)))``. Every position sees the whole sequence, so there
    is no state: it is returned as None and none is accepted. Packed segments are kept apart in
    both directions.

    Args:
        d_model: width of input and output.
        inner: name of the causal mixer.
        inner_options: its options.
        shared: one set of parameters serves both directions (then reversing the input reverses
            the output).

    >>> mixer = BidirectionalMixer(8, shared=True)
    >>> x = torch.randn(1, 5, 8)
    >>> y, state = mixer(x)
    >>> torch.allclose(mixer(x.flip(1))[0], y.flip(1), atol=1e-6), state
    (True, None)
    """

    causal = False
    splits = True

    def __init__(
        self,
        d_model: int,
        *,
        inner: str = "mamba",
        inner_options: Mapping[str, Any] | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.left = build_mixer(inner, d_model, **(inner_options or {}))
        if not self.left.causal:
            raise UsageError(f"inner mixer {inner!r} is not causal; name one that is")
        self.right = None if shared else build_mixer(inner, d_model, **(inner_options or {}))

    def forward(
        self, x: Tensor, state: None = None, *, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """y of the whole sequence, and None.

        Raises:
            UsageError: a state was given.
        """
        self._check(x, segment_ids)
        if state is not None:
            raise UsageError(_NO_STATE)
        group = self.sequence_group
        here = {} if group is None else {"group": group}
        there = {} if group is None else {"group": group.reversed()}
        forward, _ = self.left(x, segment_ids=segment_ids, **here)
        flipped = None if segment_ids is None else segment_ids.flip(1)
        right = self.left if self.right is None else self.right
        backward, _ = right(x.flip(1), segment_ids=flipped, **there)
        return forward + backward.flip(1), None

    def initial_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """There is none: raises UsageError."""
        raise UsageError(_NO_STATE)

    def scale_output(self, factor: float) -> None:
        self.left.scale_output(factor)
        if self.right is not None:
            self.right.scale_output(factor)


_NO_STATE = (
    "a bidirectional mixer has no state: it needs the whole sequence at once; "
    "pass the whole sequence, or build the model from causal mixers"
)
