"""``mambabio fit``."""

from __future__ import annotations

from ...bio.options import DataOptions, ModelOptions
from ...options import OptimizerOptions, TrainerOptions
from ..fit_parser import parse_fit

SECTIONS = {
    "data": DataOptions,
    "model": ModelOptions,
    "optimizer": OptimizerOptions,
    "trainer": TrainerOptions,
}
EPILOG = (
    "Only --data.samples and --run must be given. Interrupted by Ctrl-C or SIGTERM, the training "
    "saves its state and --resume goes on from there, with the same result as without the "
    "interruption (on a CPU, bit for bit); after kill -9 it goes on from the last checkpoint, at "
    "most --trainer.checkpoint_minutes old."
)


def main(argv: list[str], prog: str) -> int:
    """Train, or go on with a training; returns the exit code."""
    verbose = "--verbose" in argv
    arguments = parse_fit([a for a in argv if a != "--verbose"], prog, SECTIONS, EPILOG)
    from ...bio.fit import fit

    fit(arguments, verbose=verbose)
    return 0
