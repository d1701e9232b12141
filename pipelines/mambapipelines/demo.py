"""`python -m mambapipelines demo`: from simulated genomes to a classifier and its report.

No real genome may be shipped, so the demo evolves its own along the tree of the great apes. It
calls the same command line that a user would, prints each command before it runs it, and ends by
saying how to do the same with real genomes.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

REAL_GENOMES = """
The same with real genomes:
  1. Download FASTA files (plain, gzip or bgzip), one or more a species, for example the RefSeq
     assemblies of human (GCF_000001405), chimpanzee (GCF_028858775), bonobo (GCF_029289425),
     gorilla (GCF_029281585) and Sumatran orangutan (GCF_028885655) from NCBI Datasets:
       https://www.ncbi.nlm.nih.gov/datasets/genome/
  2. Put each species' files in a folder of its name (genomes/human/*.fa.gz, ...), or write a
     sheet with the columns label, path, split (train, val, test) and region. Test on other
     chromosomes than you train on:  mambabio split genomes --out sheet.tsv
  3. mambabio fit --data.samples sheet.tsv --data.window 1024 --run runs/apes
     mambabio evaluate --model runs/apes --samples sheet.tsv --split test
     mambabio classify --model runs/apes unknown.fa.gz
"""


def _commands(out: Path) -> list[list[str]]:
    sheet, run = str(out / "genomes" / "samples.tsv"), str(out / "run")
    unknown = str(out / "genomes" / "unknown.fa.gz")
    fit = ["fit", "--data.samples", sheet, "--data.window", "1024", "--run", run]
    return [
        ["simulate", "--out", str(out / "genomes")],
        [*fit, "--trainer.max_time", "90s"],
        ["evaluate", "--model", run, "--samples", sheet, "--split", "test"],
        ["classify", "--model", run, unknown],
        ["report", run],
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the demo into --out; returns the exit code of the first step that fails, else 0."""
    parser = argparse.ArgumentParser(prog="python -m mambapipelines demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to fill")
    out = parser.parse_args(argv).out
    if out.exists() and any(out.iterdir()):
        print(f"demo: {out} is not empty; remove it or name another folder: --out", file=sys.stderr)
        return 2

    from mambapipelines.cli import bio

    start = time.perf_counter()
    for command in _commands(out):
        print(f"\n$ mambabio {shlex.join(command)}", file=sys.stderr, flush=True)
        code = bio.main(command)
        if code:
            print(f"demo: mambabio {command[0]} ended with code {code}", file=sys.stderr)
            return code
    seconds = time.perf_counter() - start
    print(f"\nDone in {seconds:.0f} s. Look at {out / 'run' / 'report'} .", file=sys.stderr)
    print(REAL_GENOMES, file=sys.stderr)
    return 0
