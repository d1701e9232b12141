"""Flat options: an argparse parser whose errors are `UsageError`, and what verbs share."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, NoReturn

from mambacore.errors import UsageError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


class Parser(argparse.ArgumentParser):
    """No abbreviations, errors raised instead of printed."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`; the command line prints it and exits with 2."""
        raise UsageError(message + ".")


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def probability(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def add_model(parser: argparse.ArgumentParser) -> None:
    """``--model``."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="a run folder, an exported model folder or a shipped model's name",
    )


def add_inference(parser: argparse.ArgumentParser) -> None:
    """``--threads``, ``--device``, ``--batch-size``, ``--precision``."""
    group = parser.add_argument_group("computing")
    group.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ... (default: auto, a GPU if there is)"
    )
    group.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads (default: one a core)"
    )
    group.add_argument(
        "--batch-size", type=positive, metavar="N", help="windows at a time (default: by length)"
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the computation (default: auto, bfloat16 on a GPU, float32 elsewhere)",
    )


def device_of(arguments: argparse.Namespace) -> torch.device:
    """The device that ``--device`` names; sets the threads that ``--threads`` asks for.

    Raises:
        UsageError: there is no such device.
    """
    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    name = arguments.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name} cannot be used here: {reason}") from None
    return device


def precision_of(arguments: argparse.Namespace, device: torch.device) -> str:
    """``auto`` is bfloat16 on a GPU and float32 elsewhere."""
    if arguments.precision != "auto":
        return arguments.precision
    return "bfloat16" if device.type == "cuda" else "float32"


def check_folder(path: str | None) -> None:
    """Refuse a folder that cannot be made or written to before the work rather than after it.

    Raises:
        OSError: something else is there, or the nearest folder above is not writable.
    """
    if path is None:
        return
    folder = os.path.abspath(path)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise NotADirectoryError(20, "Not a folder", folder)
    if not os.access(folder, os.W_OK):
        raise PermissionError(13, "Permission denied", path)


def check_output(path: str | None) -> None:
    """Refuse an output file that cannot be written before the work rather than after it.

    Raises:
        OSError: its folder is missing or not writable.
    """
    if path is None or path == "-":
        return
    if os.path.isdir(path):
        raise IsADirectoryError(21, "Is a folder, not a file", path)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(2, "There is no such folder", folder)
    if not os.access(folder, os.W_OK):
        raise PermissionError(13, "Permission denied", folder)
