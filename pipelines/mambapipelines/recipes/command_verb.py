"""What the command line calls for every recipe: the name is the last word of `prog`."""

from __future__ import annotations

from .command import run_recipe


def main(argv: list[str], prog: str) -> int:
    """Run one recipe; returns the exit code."""
    return run_recipe(argv, prog.split()[-1], prog)
