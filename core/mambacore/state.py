"""What is carried between chunks: nested tuples of tensors whose first axis is the batch.

Every mixer's state is a NamedTuple of tensors, a backbone's is a tuple of those. The functions
here work on any nesting of them, None included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

S = TypeVar("S")


def map_tensors(function: Callable[[Tensor], Tensor], state: S) -> S:
    """The same nesting with `function` applied to every tensor."""
    if isinstance(state, Tensor):
        return function(state)  # type: ignore[return-value]
    if state is None:
        return state
    if isinstance(state, tuple):
        values = [map_tensors(function, item) for item in state]
        # A NamedTuple takes its fields apart, a plain tuple takes one iterable.
        if hasattr(state, "_fields"):
            return type(state)(*values)
        return tuple(values)  # type: ignore[return-value]
    raise TypeError(f"a state is made of tuples, tensors and None, not {type(state).__name__}")


def tensors(state: object) -> Iterator[Tensor]:
    """Every tensor of a state, depth first."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, tuple):
        for item in state:
            yield from tensors(item)


def detach(state: S) -> S:
    """Cut the state from its history: truncated back-propagation through time."""
    return map_tensors(Tensor.detach, state)


def select(state: S, index: Tensor | slice | list[int]) -> S:
    """Some rows of the batch, in the order asked for; a row may be taken several times.

    Args:
        state: any state.
        index: row numbers (a list or an integer tensor), a boolean mask of the batch, or a slice.

    >>> select((torch.arange(3),), [2, 0])
    (tensor([2, 0]),)
    """
    return map_tensors(lambda tensor: tensor[_on_device(index, tensor)], state)


def to(state: S, device: torch.device | str) -> S:
    """The state on another device."""
    return map_tensors(lambda tensor: tensor.to(device), state)


def nbytes(state: object) -> int:
    """Bytes that the state's tensors hold."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(state))


def _on_device(index: Tensor | slice | list[int], tensor: Tensor) -> Tensor | slice:
    if isinstance(index, slice):
        return index
    return torch.as_tensor(index, device=tensor.device)
