"""Small sequence files and the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mambapipelines.cli import bio

SMALL = (
    "--data.window", "128", "--data.first_window", "64", "--data.tokens", "1024",
    "--model.d_model", "8", "--model.n_layer", "1", "--trainer.max_steps", "12",
    "--trainer.val_check_interval", "4", "--trainer.log_every_n_steps", "2",
    "--trainer.threads", "1", "--trainer.accelerator", "cpu",
)  # fmt: skip

Cli = Callable[..., tuple[int, str, str]]


def run_cli(capsys, *argv: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    capsys.readouterr()
    code = bio.main([str(argument) for argument in argv])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def random_fasta(path: Path, seed: int, records: int = 6, length: int = 700, gc: float = 0.5):
    """A FASTA file of random records with a share of G and C."""
    random = np.random.default_rng(seed)
    p = [(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]
    with path.open("w") as file:
        for i in range(records):
            letters = "".join(random.choice(list("ACGT"), size=length, p=p))
            file.write(f">{path.stem}{i} made up\n{letters}\n")
    return path


def make_sheet(folder: Path) -> Path:
    """Two labels that differ in composition; test files of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["label\tpath\tsplit"]
    for seed, (label, gc) in enumerate((("rich", 0.7), ("poor", 0.3))):
        for split, records in (("train", 12), ("test", 3)):
            path = random_fasta(folder / f"{label}_{split}.fa", 10 * seed + records, records, gc=gc)
            rows.append(f"{label}\t{path.name}\t{split}")
    sheet = folder / "sheet.tsv"
    sheet.write_text("\n".join(rows) + "\n")
    return sheet
