"""Synthetic tasks that show what a sequence model can remember, as endless fresh data."""

from typing import TYPE_CHECKING

from mambakernels._lazy import attach

if TYPE_CHECKING:
    from mambacore.tasks.copying import SelectiveCopying as SelectiveCopying
    from mambacore.tasks.induction import InductionHeads as InductionHeads
    from mambacore.tasks.questions import Questions as Questions
    from mambacore.tasks.questions import Task as Task

_NAMES: dict[str, str] = {
    "InductionHeads": "induction",
    "Questions": "questions",
    "SelectiveCopying": "copying",
    "Task": "questions",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = attach(__name__, _NAMES)
