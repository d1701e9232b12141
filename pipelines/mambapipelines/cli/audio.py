"""``mambaaudio``: raw audio, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence

from .program import Program, Verb, run

_VERBS = "mambapipelines.cli.audio_verbs"

PROGRAM = Program(
    name="mambaaudio",
    description="Train on recordings, sample by sample.",
    verbs=(
        Verb("fit", f"{_VERBS}.fit", "train on recordings into a run folder, or resume a run"),
        Verb("generate", f"{_VERBS}.generate", "make sound: from nothing, a label or a recording"),
        Verb("evaluate", f"{_VERBS}.evaluate", "bits per sample on a split, beside floors"),
        Verb("score", f"{_VERBS}.score", "bits per sample of sound files, by file or second (TSV)"),
        Verb("report", f"{_VERBS}.report", "draw a run as a page: curves, spectrograms, players"),
        Verb("info", f"{_VERBS}.info", "read headers of sound files, or describe a model"),
        Verb("check", f"{_VERBS}.check", "clipping, DC, silence, bit depth, duplicates (TSV)"),
    ),
    epilog="Reading, writing and coding sound is in the Python package mambaaudio.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mambaaudio`` with `argv` (``sys.argv[1:]`` by default); returns the exit code."""
    return run(PROGRAM, argv)
