"""Where a model is: a folder, a run, or one that ships with a package."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from mambacore.errors import DataError, UsageError

CONFIG = "config.json"


def find_model(model: str | os.PathLike[str], package: str) -> Path:
    """The model folder that a command's ``--model`` means.

    Args:
        model: a model folder, a run folder (its ``model/`` then), or the name of a model that
            ships with the package: a folder of its own ``models/``.
        package: import name of the package, which must be importable.

    Raises:
        UsageError: there is no such folder and no shipped model of that name; names are listed.
        DataError: the folder holds no model.

    >>> find_model("apes", "mambacore")
    Traceback (most recent call last):
    mambacore.errors.UsageError: no model 'apes': it is no folder and not the name of a model ...
    """
    given = Path(model)
    for folder in (given, given / "model"):
        if (folder / CONFIG).is_file():
            return folder
    if given.exists():
        raise DataError(
            f"no model in {given}: neither it nor its sub-folder model/ has a {CONFIG}. Give an "
            "exported model folder, or the folder of a run that has ended"
        )
    shipped = Path(str(resources.files(package))) / "models"
    names = sorted(path.parent.name for path in shipped.glob(f"*/{CONFIG}"))
    if str(model) in names:
        return shipped / str(model)
    raise UsageError(
        f"no model {str(model)!r}: it is no folder and not the name of a model that ships with "
        f"{package} (shipped: {', '.join(names) or 'none in this version'}). Give a run folder, an "
        "exported model folder or such a name"
    )
