"""``mambabio prepare``: sequence files, read once, as a folder for many trainings."""

from __future__ import annotations

import sys
from pathlib import Path

from ..arguments import Parser, probability


def main(argv: list[str], prog: str) -> int:
    """Prepare; returns the exit code."""
    parser = Parser(
        prog,
        "Read every sequence of a sheet, a folder or one file into a folder of token ids, one byte "
        "a base, which `fit`, `pretrain`, `evaluate` and `perplexity` take in place of the sheet. "
        "It is memory-mapped, may be moved, and needs the sequence files no more. Prints its path.",
    )
    parser.add_argument(
        "samples", metavar="SHEET", help="sample sheet, folder of sequences or sequence file"
    )
    parser.add_argument(
        "-o", "--out", metavar="FOLDER", required=True, help="the new folder (or one to replace)"
    )
    parser.add_argument(
        "--n-policy",
        choices=("cut", "split", "keep"),
        default="split",
        help="runs of N: cut joins what is left (fit's default), split makes pieces (pretrain's), "
        "keep reads N as a letter (default: split)",
    )
    parser.add_argument(
        "--validation",
        type=probability,
        default=0.1,
        metavar="P",
        help="part of the training records to hold out without val rows (default: 0.1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is held out (default: 0)")
    arguments = parser.parse_args(argv)
    from mambabio.prepared import prepare
    from mambabio.sheet import load_samples

    made = prepare(
        load_samples(Path(arguments.samples).expanduser(), labelled=False),
        Path(arguments.out).expanduser(),
        n_policy=arguments.n_policy,
        validation=arguments.validation,
        seed=arguments.seed,
        log=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(made.source)
    return 0
