"""Keeps Lightning's and PyTorch's remarks off the screen; errors still come through."""

from __future__ import annotations

import logging
import warnings


def silence() -> None:
    """Hide tips, tables and warnings that a user of the command line cannot act upon.

    Call it after Lightning was imported: it sets its loggers' levels on import.
    """
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for module in (r"lightning(\..*)?", r"torch(\..*)?", r"torchmetrics(\..*)?"):
        warnings.filterwarnings("ignore", module=module)
    warnings.filterwarnings("ignore", message=".*(LeafSpec|isinstance\\(treespec).*")
