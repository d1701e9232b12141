"""``mambabio``: DNA species classification from FASTA to report."""

from __future__ import annotations

from collections.abc import Sequence

from .program import Program, Verb, run

_VERBS = "mambapipelines.cli.bio_verbs"

PROGRAM = Program(
    name="mambabio",
    description="Train a species classifier on sequence files, and classify sequences with it.",
    verbs=(
        Verb("fit", f"{_VERBS}.fit", "train on a sample sheet into a run folder, or resume a run"),
        Verb(
            "pretrain", f"{_VERBS}.pretrain", "train a language model on sequences without labels"
        ),
        Verb("evaluate", f"{_VERBS}.evaluate", "score a model beside chance and k-mer baseline"),
        Verb("perplexity", f"{_VERBS}.perplexity", "bits a base against context length"),
        Verb("classify", f"{_VERBS}.classify", "label the records of sequence files (TSV)"),
        Verb("report", f"{_VERBS}.report", "draw a run: curves, confusion, accuracy by length"),
        Verb("prepare", f"{_VERBS}.prepare", "encode sequence files once, for many trainings"),
        Verb("simulate", f"{_VERBS}.simulate", "write simulated great-ape genomes to try it on"),
        Verb("split", f"{_VERBS}.split", "add train/val/test to a sheet, list duplicates"),
        Verb("info", f"{_VERBS}.info", "describe a model, a run or the installation"),
    ),
    epilog="A first run: mambabio fit --data.samples sheet.tsv --data.window 1024 --run runs/x",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mambabio`` with `argv` (``sys.argv[1:]`` by default); returns the exit code."""
    return run(PROGRAM, argv)
