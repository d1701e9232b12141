"""Mamba models: mixers, blocks, backbone, streaming state, checkpoints."""

from typing import TYPE_CHECKING

from mambakernels._lazy import attach

if TYPE_CHECKING:
    from mambacore import state as state
    from mambacore.backbone import Backbone as Backbone
    from mambacore.block import Block as Block
    from mambacore.checkpoint import from_pretrained as from_pretrained
    from mambacore.checkpoint import save_pretrained as save_pretrained
    from mambacore.config import ModelConfig as ModelConfig
    from mambacore.errors import DataError as DataError
    from mambacore.errors import UsageError as UsageError
    from mambacore.folders import read_folder as read_folder
    from mambacore.folders import write_folder as write_folder
    from mambacore.generation import generate as generate
    from mambacore.generation import sample as sample
    from mambacore.heads import Pooling as Pooling
    from mambacore.language_model import LanguageModel as LanguageModel
    from mambacore.losses import LossSum as LossSum
    from mambacore.losses import chunked_cross_entropy as chunked_cross_entropy
    from mambacore.mixers import AttentionMixer as AttentionMixer
    from mambacore.mixers import BidirectionalMixer as BidirectionalMixer
    from mambacore.mixers import MambaMixer as MambaMixer
    from mambacore.mixers import Mixer as Mixer
    from mambacore.mixers import S4DMixer as S4DMixer
    from mambacore.mixers import build_mixer as build_mixer
    from mambacore.mixers import mixer_names as mixer_names
    from mambacore.mixers import register_mixer as register_mixer
    from mambacore.multiscale import MultiScaleBackbone as MultiScaleBackbone
    from mambacore.multiscale import MultiScaleConfig as MultiScaleConfig
    from mambacore.optim import parameter_groups as parameter_groups

_NAMES: dict[str, str] = {
    "AttentionMixer": "mixers",
    "Backbone": "backbone",
    "BidirectionalMixer": "mixers",
    "Block": "block",
    "DataError": "errors",
    "LanguageModel": "language_model",
    "LossSum": "losses",
    "MambaMixer": "mixers",
    "Mixer": "mixers",
    "ModelConfig": "config",
    "MultiScaleBackbone": "multiscale",
    "MultiScaleConfig": "multiscale",
    "Pooling": "heads",
    "S4DMixer": "mixers",
    "UsageError": "errors",
    "build_mixer": "mixers",
    "chunked_cross_entropy": "losses",
    "from_pretrained": "checkpoint",
    "generate": "generation",
    "mixer_names": "mixers",
    "parameter_groups": "optim",
    "read_folder": "folders",
    "register_mixer": "mixers",
    "sample": "generation",
    "save_pretrained": "checkpoint",
    "state": "state",
    "write_folder": "folders",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = attach(__name__, _NAMES)
