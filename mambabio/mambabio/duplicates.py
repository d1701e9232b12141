"""Records that are the same: equal, on the other strand, rotated, or under one accession."""

from __future__ import annotations

import hashlib
import re

import numpy as np

from mambabio.alphabet import Ids, reverse_complement
from mambabio.kmers import INVALID, kmer_codes, mix64

# INSDC and RefSeq accessions without their version. Names like chr1, contig_12 or 7 say nothing
# about being the same sequence.
_ACCESSION = re.compile(r"([A-Z]{1,6}_?[0-9]{5,12})(\.[0-9]+)?")
_FINGERPRINT_K = 31


def accession(name: str) -> str | None:
    """The accession in a record's name, without its version; None where the name is not one.

    Example:
        >>> accession("NC_012920.1"), accession("chr1"), accession("AC009238")
        ('NC_012920', None, 'AC009238')
    """
    match = _ACCESSION.fullmatch(name)
    return match.group(1) if match else None


def strand_digest(ids: Ids) -> str:
    """A SHA-256 that is equal for a sequence and its reverse complement, and for nothing else.

    Example:
        >>> strand_digest(np.array([0, 0, 1], np.uint8)) == strand_digest(
        ...     np.array([2, 3, 3], np.uint8))
        True
    """
    forward = ids.tobytes()
    return hashlib.sha256(min(forward, reverse_complement(ids).tobytes())).hexdigest()


def circular_fingerprint(ids: Ids) -> tuple[int, int]:
    """Equal for all rotations of a sequence and of its reverse complement.

    The length and the sum, modulo 2^64, of mixed canonical 31-mers read around the circle.
    Different sequences with the same one are possible (same 31-mers in another order), so
    `same_circle` decides.

    Example:
        >>> ids = np.random.default_rng(0).integers(0, 4, 100).astype(np.uint8)
        >>> circular_fingerprint(ids) == circular_fingerprint(np.roll(ids, 17))
        True
    """
    if len(ids) == 0:
        return 0, 0
    around = np.concatenate([ids, np.resize(ids, _FINGERPRINT_K - 1)])
    total = 0
    for start in range(0, len(ids), 1 << 20):
        piece = around[start : start + (1 << 20) + _FINGERPRINT_K - 1]
        codes = kmer_codes(piece, _FINGERPRINT_K, canonical=True)
        total += int(mix64(codes[codes != INVALID]).sum(dtype=np.uint64))
    return len(ids), total & (2**64 - 1)


def same_circle(one: Ids, other: Ids) -> str | None:
    """How `other` equals `one`: "identical", "reverse complement", "rotated", "rotated reverse
    complement", or None where it does not.

    Example:
        >>> one = np.array([0, 0, 1, 2], np.uint8)
        >>> same_circle(one, np.array([1, 2, 0, 0], np.uint8))
        'rotated'
        >>> same_circle(one, np.array([1, 1, 1, 1], np.uint8)) is None
        True
    """
    if len(one) != len(other):
        return None
    first, strands = one.tobytes(), (other.tobytes(), reverse_complement(other).tobytes())
    if first == strands[0]:
        return "identical"
    if first == strands[1]:
        return "reverse complement"
    if strands[0] in first + first:
        return "rotated"
    if strands[1] in first + first:
        return "rotated reverse complement"
    return None
