"""The sections of a training, as recipes change and place them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ..options import TrainerOptions, require

if TYPE_CHECKING:
    import torch

SECTIONS = ("data", "model", "optimizer", "trainer")
T = TypeVar("T", bound=TrainerOptions)


def changed_sections(
    config: Any, changes: Mapping[str, Any], name: str, *, beside: Collection[str] = ()
) -> dict[str, Any]:
    """A configuration's sections of ``fit`` with a variant's changes.

    Args:
        config: has the sections as attributes.
        changes: by dotted name, e.g. {model.mixer: s4d}.
        name: how messages call the variant.
        beside: keys of the variant that are no changes of a section.

    Raises:
        UsageError: a change of something that does not exist, or to a value out of range.
    """
    sections = {section: getattr(config, section) for section in SECTIONS}
    for key, value in changes.items():
        if key in beside:
            continue
        section, _, option = key.partition(".")
        known = section in sections and option in {
            item.name for item in dataclasses.fields(sections[section])
        }
        require(known, f"--{name}", key, "SECTION.OPTION of " + ", ".join(SECTIONS))
        sections[section] = dataclasses.replace(sections[section], **{option: value})
    return sections


def placed(trainer: T, device: torch.device) -> T:
    """The options of the trainer for this device: full precision where it is no GPU."""
    gpu = device.type == "cuda"
    precision = trainer.precision if gpu else "32-true"
    accelerator = "gpu" if gpu else "cpu"
    return dataclasses.replace(trainer, accelerator=accelerator, precision=precision)
