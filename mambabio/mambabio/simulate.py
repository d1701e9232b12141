"""Genomes of five great apes, made up: evolved along their tree, to try everything without data.

No real sequence is in them. What is taken from nature is the tree with its divergences (human to
chimpanzee 1.2 % of single-copy bases), the ratio of transitions, the decay of CpG, isochores,
indels, and transposon families that went on inserting in each lineage. These last are what tells
the species apart at short range, and they are far denser here than in apes, so that a small model
learns the task in minutes; real apes are much harder (chance up to many thousand bases).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from mambabio.alphabet import Ids, decode, reverse_complement
from mambabio.simulate_ancestor import ancestor, markov_sequence
from mambabio.simulate_evolution import Branch, Chromosome, Rates, Sites, divergence, evolve
from mambabio.simulate_repeats import shuffle_keeping_kmers
from mambacore.cache import atomic_path, atomic_write
from mambacore.errors import UsageError

SPECIES = ("bonobo", "chimpanzee", "gorilla", "human", "orangutan")
_LINE = 80
_FAMILY_LENGTH = 240
_OLD_REPEATS = 0.35
_MINIMUM = 2000
_UNKNOWN_LENGTH = 5000
_UNKNOWN_EACH = 4

# Branch -> (its parent, substitutions per site, bias towards GC, share of the young repeats that
# insert on it). The shares on each way from the root to a species add up to 1.
_TREE: Mapping[str, tuple[str, float, float, float]] = {
    "orangutan": ("root", 0.0155, 0.94, 1.0),
    "african": ("root", 0.0075, 1.0, 0.05),
    "gorilla": ("african", 0.0080, 1.06, 0.95),
    "hominini": ("african", 0.0022, 1.0, 0.05),
    "human": ("hominini", 0.0060, 1.0, 0.9),
    "pan": ("hominini", 0.0038, 1.03, 0.1),
    "chimpanzee": ("pan", 0.0022, 1.0, 0.8),
    "bonobo": ("pan", 0.0022, 0.97, 0.8),
}


@dataclass(frozen=True)
class Simulation:
    """What `simulate` wrote. samples: the sample sheet. sizes: bases by species.

    divergence: by pair of species, share of orthologous bases that differ.
    """

    folder: Path
    samples: Path
    sizes: dict[str, int]
    divergence: dict[str, float]


def simulate(
    out_dir: str | os.PathLike[str],
    *,
    seed: int = 0,
    bases: int = 600_000,
    chromosomes: int = 6,
    repeats: float = 2.0,
) -> Simulation:
    """Simulate the genomes of human, chimpanzee, bonobo, gorilla and orangutan.

    Writes into ``out_dir`` one bgzip FASTA a species (``human.fa.gz``, with ``chr1`` on),
    ``samples.tsv`` (a sample sheet whose test part is the last chromosome, validation the one
    before, training the others: in every species the same ones, so that no orthologous sequence
    is on both sides), ``unknown.fa.gz`` (stretches of the test chromosomes to classify; the
    headers end with the truth), ``truth.json`` (parameters, tree, measured divergences) and
    ``README.md``.

    Args:
        out_dir: folder, made where missing; files of these names in it are replaced.
        seed: the same seed and sizes give the same bytes.
        bases: of the ancestor; young repeats make the species larger. At least 2,000 a
            chromosome.
        chromosomes: 3 or more, of equal size.
        repeats: young repeat copies per 1,000 bases of ancestor, gained by each species since
            the root; each is about 230 bases long. 0 leaves nothing but substitutions and indels
            to tell the species by.

    Returns:
        Where things are, and the divergences.

    Raises:
        UsageError: a size out of range.
        DataError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> made = simulate(tempfile.mkdtemp(), seed=1, bases=30_000, chromosomes=3)
        >>> sorted(p.name for p in made.folder.iterdir())[:3]
        ['README.md', 'bonobo.fa.gz', 'chimpanzee.fa.gz']
    """
    if chromosomes < 3:
        raise UsageError(
            f"chromosomes is {chromosomes}; at least 3 are needed: for training, validation, test"
        )
    if bases < _MINIMUM * chromosomes:
        raise UsageError(
            f"bases is {bases:,} for {chromosomes} chromosomes; give at least "
            f"{_MINIMUM * chromosomes:,}"
        )
    if not 0 <= repeats <= 20:
        raise UsageError(f"repeats is {repeats}; accepted are 0 to 20 copies per 1,000 bases")
    folder = Path(out_dir)
    rates = Rates()
    genomes = evolve_apes(seed, bases, chromosomes, repeats, rates)
    for species, genome in genomes.items():
        _write_fasta(folder / f"{species}.fa.gz", species, genome)
    _write_unknown(folder / "unknown.fa.gz", genomes, np.random.default_rng(seed))
    pairs = {
        f"{one}-{other}": round(_genome_divergence(genomes[one], genomes[other]), 5)
        for one, other in combinations(SPECIES, 2)
    }
    sizes = {s: sum(len(c.bases) for c in genome) for s, genome in genomes.items()}
    parameters = {"seed": seed, "bases": bases, "chromosomes": chromosomes, "repeats": repeats}
    truth = {
        "parameters": parameters,
        "tree": {
            name: {"parent": parent, **asdict(_branch(name, repeats))}
            for name, (parent, *_) in _TREE.items()
        },
        "rates": asdict(rates),
        "divergence": pairs,
        "sizes": sizes,
    }
    with atomic_write(folder / "truth.json", "w") as file:
        file.write(json.dumps(truth, indent=1) + "\n")
    with atomic_write(folder / "README.md", "w") as file:
        file.write(_readme(parameters, pairs))
    # Last: where the sheet is, everything is.
    with atomic_write(folder / "samples.tsv", "w") as file:
        file.write(_sheet(chromosomes))
    return Simulation(folder, folder / "samples.tsv", sizes, pairs)


def evolve_apes(
    seed: int, bases: int, chromosomes: int, repeats: float, rates: Rates
) -> dict[str, list[Chromosome]]:
    """The five genomes in memory, as lists of chromosomes; arguments as for `simulate`."""
    rng = np.random.default_rng(seed)
    sites = Sites()
    template = markov_sequence(_FAMILY_LENGTH, 0.5, rng)
    families: dict[str, Ids] = {name: shuffle_keeping_kmers(template, rng) for name in _TREE}
    size = bases // chromosomes
    nodes = {"root": [ancestor(size, sites, _OLD_REPEATS, rng) for _ in range(chromosomes)]}
    for name, (parent, *_) in _TREE.items():
        branch = _branch(name, repeats)
        nodes[name] = [
            evolve(chromosome, branch, families[name], rates, sites, rng)
            for chromosome in nodes[parent]
        ]
    return {species: nodes[species] for species in SPECIES}


def _branch(name: str, repeats: float) -> Branch:
    _, substitutions, gc_bias, share = _TREE[name]
    return Branch(substitutions, gc_bias, round(share * repeats, 6))


def _genome_divergence(one: list[Chromosome], other: list[Chromosome]) -> float:
    values = [divergence(a, b) for a, b in zip(one, other, strict=True)]
    return float(np.average(values, weights=[len(a.bases) for a in one]))


def _write_fasta(path: Path, species: str, genome: list[Chromosome]) -> None:
    headers = [f"chr{n} simulated {species}, no real sequence" for n in range(1, len(genome) + 1)]
    _write(path, headers, [chromosome.bases for chromosome in genome])


def _write_unknown(
    path: Path, genomes: Mapping[str, list[Chromosome]], rng: np.random.Generator
) -> None:
    """Some stretches of each species' test chromosome, in random order, on either strand."""
    drawn = []
    for species, genome in genomes.items():
        last = genome[-1].bases
        size = min(_UNKNOWN_LENGTH, len(last) // 2)
        for _ in range(_UNKNOWN_EACH):
            start = int(rng.integers(len(last) - size + 1))
            piece = last[start : start + size]
            drawn.append((species, reverse_complement(piece) if rng.random() < 0.5 else piece))
    order = rng.permutation(len(drawn)).tolist()
    headers = [f"unknown{n} truth={drawn[i][0]}" for n, i in enumerate(order, 1)]
    _write(path, headers, [drawn[i][1] for i in order])


def _write(path: Path, headers: list[str], sequences: list[Ids]) -> None:
    from Bio import bgzf

    with atomic_path(path) as beside, bgzf.BgzfWriter(str(beside), "wb") as out:
        for header, ids in zip(headers, sequences, strict=True):
            text = decode(ids)
            lines = (text[i : i + _LINE] for i in range(0, len(text), _LINE))
            out.write(f">{header}\n{chr(10).join(lines)}\n".encode())


def _sheet(chromosomes: int) -> str:
    rows = ["label\tpath\tsplit\tregion"]
    for species in SPECIES:
        for number in range(1, chromosomes + 1):
            split = {chromosomes: "test", chromosomes - 1: "val"}.get(number, "train")
            rows.append(f"{species}\t{species}.fa.gz\t{split}\tchr{number}")
    return "\n".join(rows) + "\n"


def _readme(parameters: Mapping[str, float], pairs: Mapping[str, float]) -> str:
    given = ", ".join(f"{name} {value}" for name, value in parameters.items())
    rows = "\n".join(f"| {pair} | {value:.2%} |" for pair, value in pairs.items())
    return f"""# Simulated great apes

Made by `mambabio simulate` ({given}). Nothing here is real sequence. The five genomes were evolved
from a random ancestor along the tree of the great apes; `truth.json` has tree and rates. Each
lineage has its own young repeat family, all with the same 4-mers in another order, and far more
copies than in real apes: a model that tells these species apart says nothing about real ones.

`samples.tsv` is the sample sheet. Whole chromosomes are held out, the same ones in every species.

| pair | orthologous bases that differ |
|---|---|
{rows}
"""
