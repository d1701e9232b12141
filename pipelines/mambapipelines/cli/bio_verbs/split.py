"""``mambabio split``: training, validation and test without near-duplicates across them."""

from __future__ import annotations

import sys
from pathlib import Path

from ..arguments import Parser, check_output, probability


def main(argv: list[str], prog: str) -> int:
    """Split; returns the exit code."""
    parser = Parser(
        prog,
        "Write a sample sheet with train, val and test rows. Records that are nearly the same "
        "(equal, also rotated or reverse-complemented; one accession; sharing most 31-mers) go to "
        "one side and are listed in FILE.duplicates.tsv. Prints the new sheet's path.",
    )
    parser.add_argument("samples", metavar="SHEET", help="sample sheet or folder of sequences")
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="the new sheet (default: SHEET's name with .split.tsv)"
    )
    parser.add_argument(
        "--by",
        choices=("record", "region"),
        default="record",
        help="deal whole records, or cut long ones into three parts (default: record)",
    )
    parser.add_argument(
        "--fractions",
        type=probability,
        nargs=3,
        default=(0.8, 0.1, 0.1),
        metavar=("TRAIN", "VAL", "TEST"),
        help="how much each gets (default: 0.8 0.1 0.1)",
    )
    parser.add_argument(
        "--threshold",
        type=probability,
        default=0.9,
        metavar="P",
        help="shared part of the 31-mers from which two records are near-duplicates (default: 0.9)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order (default: 0)")
    arguments = parser.parse_args(argv)
    source = Path(arguments.samples)
    target = Path(arguments.out) if arguments.out else _beside(source)
    check_output(str(target))
    from mambabio.sheet import load_samples
    from mambabio.split import split_sheet

    train, val, test = arguments.fractions
    result = split_sheet(
        load_samples(source),
        target,
        fractions=(train, val, test),
        by=arguments.by,
        seed=arguments.seed,
        threshold=arguments.threshold,
        log=lambda text: print(text, file=sys.stderr, flush=True),
    )
    for (label, split), rows in sorted(result.counts.items()):
        print(f"{label}\t{split}\t{rows} rows", file=sys.stderr)
    print(result.sheet)
    return 0


def _beside(source: Path) -> Path:
    path = source.absolute()
    stem = path.name if path.is_dir() else path.stem
    return path.with_name(f"{stem}.split.tsv")
