"""``mambaaudio fit``."""

from __future__ import annotations

from ...audio.options import AudioDataOptions, AudioModelOptions
from ...options import OptimizerOptions, TrainerOptions
from ..fit_parser import parse_fit

SECTIONS = {
    "data": AudioDataOptions,
    "model": AudioModelOptions,
    "optimizer": OptimizerOptions,
    "trainer": TrainerOptions,
}
EPILOG = (
    "Only --data.samples and --run must be given. --model.init RUN fine-tunes a trained model; a "
    "low --optimizer.lr, such as 5e-4, suits that. Interrupted by Ctrl-C or SIGTERM, the training "
    "saves its state and --resume goes on from there, with the same result as without the "
    "interruption (on a CPU, bit for bit)."
)


def main(argv: list[str], prog: str) -> int:
    """Train, or go on with a training; returns the exit code."""
    verbose = "--verbose" in argv
    arguments = parse_fit([a for a in argv if a != "--verbose"], prog, SECTIONS, EPILOG)
    from ...audio.fit import fit

    fit(arguments, verbose=verbose)
    return 0
