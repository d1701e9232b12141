"""Sequence mixers: one class a module, found by name through the registry."""

from mambacore.mixers.attention import AttentionCache, AttentionMixer, AttentionState, reserve
from mambacore.mixers.base import Mixer
from mambacore.mixers.bidirectional import BidirectionalMixer
from mambacore.mixers.mamba import MambaMixer, MambaState
from mambacore.mixers.registry import build_mixer, mixer_names, register_mixer
from mambacore.mixers.s4d import S4DMixer, S4DState

__all__ = [
    "AttentionCache",
    "AttentionMixer",
    "AttentionState",
    "BidirectionalMixer",
    "MambaMixer",
    "MambaState",
    "Mixer",
    "S4DMixer",
    "S4DState",
    "build_mixer",
    "mixer_names",
    "register_mixer",
    "reserve",
]
