"""Repeat families for simulated genomes, and their copies.

Families of the young, lineage-specific repeats are shuffles of one template that keep its count of
every 4-mer exactly (Altschul and Erickson 1985, Mol Biol Evol 2:526): they differ in order, not in
4-mer composition, so that counting 4-mers does not tell one lineage's repeats from another's.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mambabio.alphabet import A, Ids, reverse_complement

_K = 4


def shuffle_keeping_kmers(ids: Ids, rng: Generator, k: int = _K) -> Ids:
    """A random sequence with the same k-mers as `ids`, each as often, and the same ends.

    The sequence is a walk over (k - 1)-mers whose edges are the k-mers; a random walk over the
    same edges is drawn (Euler's theorem: it needs a last edge out of each node that forms a tree
    towards the end, then the other edges in any order). ids: A, C, G, T only, at least k.

    Example:
        >>> import numpy as np
        >>> from mambabio._examples import random_ids
        >>> from mambabio.kmers import kmer_codes
        >>> one = random_ids(300, 0)
        >>> other = shuffle_keeping_kmers(one, np.random.default_rng(0))
        >>> bool((one == other).all())
        False
        >>> sorted(kmer_codes(one, 4)) == sorted(kmer_codes(other, 4))
        True
    """
    nodes = [tuple(ids[i : i + k - 1].tolist()) for i in range(len(ids) - k + 2)]
    edges: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for node, following in pairwise(nodes):
        edges.setdefault(node, []).append(following)
    end = nodes[-1]
    last = _random_tree_towards(end, edges, rng)
    for node, targets in edges.items():
        if node in last:
            targets.remove(last[node])
        rng.shuffle(targets)
        if node in last:
            targets.append(last[node])
    walk = [nodes[0]]
    used = dict.fromkeys(edges, 0)
    while walk[-1] in edges and used[walk[-1]] < len(edges[walk[-1]]):
        node = walk[-1]
        walk.append(edges[node][used[node]])
        used[node] += 1
    return np.array([*walk[0], *(node[-1] for node in walk[1:])], np.uint8)


def _random_tree_towards(
    end: tuple[int, ...], edges: dict[tuple[int, ...], list[tuple[int, ...]]], rng: Generator
) -> dict[tuple[int, ...], tuple[int, ...]]:
    """For each node but `end` an edge, together a tree towards it (Wilson's algorithm, 1996)."""
    following: dict[tuple[int, ...], tuple[int, ...]] = {}
    reached = {end}
    for start in edges:
        node = start
        while node not in reached:
            following[node] = edges[node][int(rng.integers(len(edges[node])))]
            node = following[node]
        node = start
        while node not in reached:
            reached.add(node)
            node = following[node]
    return following


def copies(
    family: Ids, number: int, divergence: tuple[float, float], full_length: float, rng: Generator
) -> list[Ids]:
    """Copies of a family as they stand in a genome.

    family: the consensus. number: how many. divergence: range of the share of substituted bases
    in a copy. full_length: share of complete copies; the others lack a random part of their
    beginning, as retrotransposons do. Each has a tail of 8 to 20 A; half lie on the other strand.
    """
    result = []
    for _ in range(number):
        first = 0 if rng.random() < full_length else int(rng.integers(len(family) * 3 // 4))
        body = family[first:].copy()
        hit = rng.random(len(body)) < rng.uniform(*divergence)
        body[hit] = (body[hit] + rng.integers(1, 4, int(hit.sum()))) & 3
        copy = np.concatenate([body, np.full(rng.integers(8, 21), A, np.uint8)])
        result.append(reverse_complement(copy) if rng.random() < 0.5 else copy)
    return result


def insertion_points(length: int, number: int, rng: Generator) -> NDArray[np.int64]:
    """Sorted places between bases, all different, to put copies at."""
    return np.sort(rng.choice(length, size=min(number, length), replace=False)).astype(np.int64)
