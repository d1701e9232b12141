"""The genome that simulated evolution starts from."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mambabio.alphabet import C, G, Ids
from mambabio.simulate_evolution import Chromosome, Sites, insert_copies
from mambabio.simulate_repeats import copies

# Observed over expected of human dinucleotides that are far from 1.
_CPG_RATIO = 0.22
_TPG_RATIO = 1.2
_BURN_IN = 50
_OLD_FAMILIES = (300, 900, 160)  # bases, about those of Alu, a 5'-truncated L1, MIR
_OLD_DIVERGENCE = (0.08, 0.25)


def ancestor(length: int, sites: Sites, old_repeats: float, rng: Generator) -> Chromosome:
    """A chromosome with isochores, few CpG, and old repeats.

    Its stretches of 20 to 60 kb have a GC content drawn around 41 % (36 to 52 %), and are first
    order Markov chains in which CpG has 0.22 of its expected share. Then copies of three
    families, 8 to 25 % diverged, are inserted: ``old_repeats`` per 1,000 bases.
    """
    parts, done = [], 0
    while done < length:
        size = min(int(rng.integers(20_000, 60_001)), length - done)
        gc = float(np.clip(rng.normal(0.41, 0.04), 0.36, 0.52))
        parts.append(markov_sequence(size, gc, rng))
        done += size
    chromosome = Chromosome(np.concatenate(parts), sites.new(length))
    families = [markov_sequence(size, 0.45, rng) for size in _OLD_FAMILIES]
    number = int(rng.poisson(old_repeats * length / 1000))
    which = rng.integers(len(families), size=number)
    old = [copies(families[i], 1, _OLD_DIVERGENCE, 0.4, rng)[0] for i in which]
    return insert_copies(chromosome, old, sites, rng)


def markov_sequence(length: int, gc: float, rng: Generator) -> Ids:
    """A first-order Markov chain with a GC content and the depletion of CpG.

    Drawn as many short chains side by side, each after a burn-in, then joined.

    Example:
        >>> ids = markov_sequence(100_000, 0.4, np.random.default_rng(0))
        >>> cpg = ((ids[:-1] == 1) & (ids[1:] == 2)).mean()
        >>> bool(0.1 < cpg / ((ids == 1).mean() * (ids == 2).mean()) < 0.35)
        True
    """
    cumulated = np.cumsum(_transition_matrix(gc), axis=1)[:, :3]
    steps = max(1, min(length, 256))
    chains = -(-length // steps)
    state = rng.integers(0, 4, chains)
    columns = np.empty((steps, chains), np.uint8)
    for step in range(-_BURN_IN, steps):
        state = (rng.random(chains)[:, None] > cumulated[state]).sum(axis=1)
        if step >= 0:
            columns[step] = state
    return columns.T.reshape(-1)[:length].copy()


def _transition_matrix(gc: float) -> NDArray[np.float64]:
    share = np.array([1 - gc, gc, gc, 1 - gc]) / 2
    matrix = np.tile(share, (4, 1))
    matrix[C, G] *= _CPG_RATIO
    matrix[3, G] *= _TPG_RATIO
    matrix[C, 0] *= _TPG_RATIO
    return matrix / matrix.sum(axis=1, keepdims=True)
