"""One branch of evolution: substitutions, indels and repeat insertions on a chromosome."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mambabio.alphabet import C, G, Ids
from mambabio.simulate_repeats import copies, insertion_points

_TARGET_SITE = 8  # bases doubled where a copy is inserted, 8 to 16


@dataclass(frozen=True)
class Chromosome:
    """bases: (n,) ids. site: (n,) int64: bases of two genomes with one site are orthologous."""

    bases: Ids
    site: NDArray[np.int64]


@dataclass(frozen=True)
class Branch:
    """What happens between two nodes of the tree.

    substitutions: expected per site. gc_bias: rate of A,T to C,G changes relative to the reverse.
    repeats: copies inserted per 1,000 bases.
    """

    substitutions: float
    gc_bias: float = 1.0
    repeats: float = 0.0


@dataclass(frozen=True)
class Rates:
    """What all branches share.

    transitions: transitions per transversion, CpG aside. cpg: how much faster CpG changes, nearly
    always to TpG or CpA. indels: insertions and deletions per substitution; half of each.
    indel_mean: mean length (geometric). divergence, full_length: of repeat copies, see `copies`.
    """

    transitions: float = 2.1
    cpg: float = 10.0
    indels: float = 0.12
    indel_mean: float = 4.0
    divergence: tuple[float, float] = (0.01, 0.05)
    full_length: float = 0.7


class Sites:
    """Hands out numbers for new bases."""

    def __init__(self) -> None:
        self._next = 0

    def new(self, number: int) -> NDArray[np.int64]:
        """So many numbers that were never used."""
        self._next += number
        return np.arange(self._next - number, self._next, dtype=np.int64)


def evolve(
    parent: Chromosome, branch: Branch, family: Ids, rates: Rates, sites: Sites, rng: Generator
) -> Chromosome:
    """The chromosome at the branch's end: substituted, with indels, then with young repeats."""
    bases = substitute(parent.bases, branch, rates, rng)
    changed = _indels(Chromosome(bases, parent.site), branch, rates, sites, rng)
    number = int(rng.poisson(branch.repeats * len(changed.bases) / 1000))
    new = copies(family, number, rates.divergence, rates.full_length, rng)
    return insert_copies(changed, new, sites, rng)


def substitute(bases: Ids, branch: Branch, rates: Rates, rng: Generator) -> Ids:
    """Bases after substitutions, whose expected number per site is the branch's length.

    A CpG changes `cpg` times as fast, by deamination (C to T, G to A). Elsewhere transitions and
    transversions are drawn in their ratio and A,T to C,G is favoured by `gc_bias`. Two hits at
    one site are not modelled: branches are far shorter than that.
    """
    cpg = np.zeros(len(bases), bool)
    pair = (bases[:-1] == C) & (bases[1:] == G)
    cpg[:-1] |= pair
    cpg[1:] |= pair
    weak = (bases == 0) | (bases == 3)
    rate = np.where(cpg, rates.cpg, np.where(weak, branch.gc_bias, 1.0))
    hit = rng.random(len(bases)) < rate * (branch.substitutions / rate.mean())
    transition = rng.random(len(bases)) < rates.transitions / (1 + rates.transitions)
    transition |= cpg & (rng.random(len(bases)) < 0.95)
    # A-G and C-T differ by 2 in their ids, so a transition flips the high bit; a transversion
    # flips the low bit and, half of the time, both.
    flip = np.where(transition, 2, np.where(rng.random(len(bases)) < 0.5, 1, 3))
    return np.where(hit, bases ^ flip.astype(np.uint8), bases)


def _indels(
    chromosome: Chromosome, branch: Branch, rates: Rates, sites: Sites, rng: Generator
) -> Chromosome:
    """Deletions, then insertions that repeat the bases before them (as slippage does)."""
    bases, site = chromosome.bases, chromosome.site
    expected = branch.substitutions * rates.indels / 2 * len(bases)
    start = insertion_points(len(bases), int(rng.poisson(expected)), rng)
    depth = np.zeros(len(bases) + 1, np.int64)
    np.add.at(depth, start, 1)
    end = np.minimum(start + rng.geometric(1 / rates.indel_mean, len(start)), len(bases))
    np.add.at(depth, end, -1)
    kept = np.cumsum(depth[:-1]) == 0
    bases, site = bases[kept], site[kept]
    place = insertion_points(len(bases), int(rng.poisson(expected)), rng)
    length = np.minimum(rng.geometric(1 / rates.indel_mean, len(place)), place)
    new = [bases[p - n : p] for p, n in zip(place, length, strict=True)]
    return _insert(Chromosome(bases, site), place, new, sites)


def insert_copies(
    chromosome: Chromosome, new: list[Ids], sites: Sites, rng: Generator
) -> Chromosome:
    """Repeat copies at random places, each with a doubled target site before it."""
    bases = chromosome.bases
    place = insertion_points(len(bases), len(new), rng)
    target = np.minimum(rng.integers(_TARGET_SITE, 2 * _TARGET_SITE + 1, len(place)), place)
    pieces = [
        np.concatenate([copy, bases[p - n : p]])
        for copy, p, n in zip(new, place, target, strict=False)
    ]
    return _insert(chromosome, place, pieces, sites)


def _insert(
    chromosome: Chromosome, place: NDArray[np.int64], new: list[Ids], sites: Sites
) -> Chromosome:
    """New bases before the base at each (sorted) place."""
    if not new:
        return chromosome
    lengths = np.array([len(piece) for piece in new], np.int64)
    where = np.repeat(place, lengths)
    inserted = np.concatenate(new)
    return Chromosome(
        np.insert(chromosome.bases, where, inserted),
        np.insert(chromosome.site, where, sites.new(len(inserted))),
    )


def divergence(one: Chromosome, other: Chromosome) -> float:
    """Share of orthologous bases that differ (substitutions; gaps are not counted)."""
    _, first, second = np.intersect1d(one.site, other.site, assume_unique=True, return_indices=True)
    return float((one.bases[first] != other.bases[second]).mean()) if len(first) else float("nan")
