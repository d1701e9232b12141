"""Mixers by name, so that a configuration can choose one a layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from mambacore.errors import UsageError
from mambacore.mixers.base import Mixer

M = TypeVar("M", bound=type[Mixer])

_MIXERS: dict[str, type[Mixer]] = {}


def register_mixer(name: str) -> Callable[[M], M]:
    """Class decorator that makes a mixer available to configurations under `name`.

    The class takes ``(d_model, **options)``. A name that another class has raises UsageError.
    """

    def register(mixer: M) -> M:
        if name in _MIXERS and _MIXERS[name].__qualname__ != mixer.__qualname__:
            raise UsageError(f"a mixer named {name!r} exists already; choose another name")
        _MIXERS[name] = mixer
        return mixer

    return register


def mixer_names() -> tuple[str, ...]:
    """Names that `build_mixer` and `ModelConfig` accept."""
    return tuple(sorted(_MIXERS))


def build_mixer(name: str, d_model: int, **options: Any) -> Mixer:
    """Make the mixer `name` of width d_model.

    Raises:
        UsageError: an unknown name or option; the message lists those that exist.

    >>> build_mixer("mamba", 8, d_state=4).d_model
    8
    """
    if name not in _MIXERS:
        raise UsageError(f"unknown mixer {name!r}; there are: {', '.join(mixer_names())}")
    accepted = list(inspect.signature(_MIXERS[name]).parameters)[1:]
    for option in options:
        if option not in accepted:
            raise UsageError(
                f"mixer {name!r} has no option {option!r}; accepted: {', '.join(accepted)}"
            )
    return _MIXERS[name](d_model, **options)
