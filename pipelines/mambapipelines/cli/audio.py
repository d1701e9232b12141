"""``mambaaudio``: raw audio, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence

from .program import Program, Verb, run

VERBS: tuple[Verb, ...] = ()

PROGRAM = Program(
    name="mambaaudio",
    description="Train on raw audio, generate it and score models of it.",
    verbs=VERBS,
    epilog=""
    if VERBS
    else "This version has no audio verbs yet; the Python package is mambaaudio.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mambaaudio`` with `argv` (``sys.argv[1:]`` by default); returns the exit code."""
    return run(PROGRAM, argv)
