"""``mambabio simulate``: genomes to try everything on."""

from __future__ import annotations

import sys

from ..arguments import Parser, positive


def main(argv: list[str], prog: str) -> int:
    """Simulate; returns the exit code."""
    parser = Parser(
        prog,
        "Write genomes evolved along the great-ape tree (FASTA, a sample sheet, the truth). "
        "Prints the sample sheet's path.",
        "No real sequence is in them: they are for trying the commands, not for biology.",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: 0)")
    parser.add_argument(
        "--bases", type=positive, default=600_000, metavar="N", help="a species (default: 600000)"
    )
    parser.add_argument(
        "--chromosomes", type=positive, default=6, metavar="N", help="3 or more (default: 6)"
    )
    parser.add_argument(
        "--repeats",
        type=float,
        default=2.0,
        metavar="R",
        help="young repeats per 1,000 bases; fewer make it harder (default: 2)",
    )
    arguments = parser.parse_args(argv)
    from mambabio.simulate import simulate

    made = simulate(
        arguments.out,
        seed=arguments.seed,
        bases=arguments.bases,
        chromosomes=arguments.chromosomes,
        repeats=arguments.repeats,
    )
    for species, size in made.sizes.items():
        print(f"{species}: {size:,} bases", file=sys.stderr)
    print(made.samples)
    return 0
