"""``mambabio pretrain``."""

from __future__ import annotations

from ...language.options import (
    LanguageData,
    LanguageModelOptions,
    LanguageOptimizer,
    LanguageTrainer,
)
from ..fit_parser import parse_fit

SECTIONS = {
    "data": LanguageData,
    "model": LanguageModelOptions,
    "optimizer": LanguageOptimizer,
    "trainer": LanguageTrainer,
}
EPILOG = (
    "Only --data.samples and --run must be given. Prints nothing; RUN/model is a language model "
    "for mambacore.from_pretrained, for `mambabio perplexity`, and for `mambabio fit "
    "--model.init RUN`. Interrupted by Ctrl-C or SIGTERM, the training saves its state and "
    "--resume goes on from there, with the same result as without the interruption (on a CPU, bit "
    "for bit)."
)


def main(argv: list[str], prog: str) -> int:
    """Train, or go on with a training; returns the exit code."""
    verbose = "--verbose" in argv
    arguments = parse_fit([a for a in argv if a != "--verbose"], prog, SECTIONS, EPILOG)
    from ...language.pretrain import pretrain

    pretrain(arguments, verbose=verbose)
    return 0
