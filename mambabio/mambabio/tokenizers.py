"""From nucleotides to the tokens that a model reads, and back without loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mambabio.alphabet import PAD, VOCAB_SIZE, Ids, T, decode, encode
from mambacore.errors import UsageError

Sequence: TypeAlias = str | bytes | Ids
"""Text (``str`` or ``bytes``), or a uint8 array of nucleotide ids."""

MAX_K = 12


@dataclass(frozen=True)
class NucleotideTokenizer:
    """One token a nucleotide: the ids of `mambabio.alphabet`.

    >>> tokens = NucleotideTokenizer().encode("ACGTN")
    >>> tokens.tolist(), NucleotideTokenizer().decode(tokens)
    ([0, 1, 2, 3, 4], 'ACGTN')
    """

    kind: ClassVar[str] = "nucleotide"
    vocab_size: ClassVar[int] = VOCAB_SIZE
    pad_id: ClassVar[int] = PAD

    def encode(self, sequence: Sequence) -> Ids:
        """Token ids, uint8 (length,).  Raises `SequenceError` for letters that are none."""
        return _nucleotides(sequence)

    def decode(self, tokens: NDArray[Any]) -> str:
        """The letters of tokens; padding is left out.  Raises `UsageError` for other ids."""
        return decode(_tokens(tokens, self.vocab_size).astype(np.uint8))

    def to_dict(self) -> dict[str, Any]:
        """What `tokenizer_from_dict` makes the tokenizer from."""
        return {"kind": self.kind}


@dataclass(frozen=True)
class KmerTokenizer:
    """One token for k nucleotides in a row, every `stride` nucleotides.

    At each place p = 0, stride, 2 stride, ...: if the k letters from p on are all A, C, G or T,
    one token, their number in base 4 (A=0, C=1, G=2, T=3, the first letter most significant).
    Otherwise (another letter among them, or the sequence ends) the next `stride` letters are
    spelled as single-letter tokens ``4**k + nucleotide id``. So nothing is lost, and with stride 1
    there are as many tokens as letters.

    k: 1 to 12.  stride: 1 to k; k, the default, means k-mers that do not overlap.

    >>> tokenizer = KmerTokenizer(3)
    >>> tokenizer.encode("AAGTTTNC").tolist()
    [2, 63, 68, 65]
    >>> tokenizer.decode(tokenizer.encode("AAGTTTNC"))
    'AAGTTTNC'
    >>> KmerTokenizer(3, stride=1).encode("AAGT").tolist()
    [2, 11, 66, 67]
    """

    k: int
    stride: int | None = None

    kind: ClassVar[str] = "kmer"

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MAX_K:
            raise UsageError(f"k is {self.k}; accepted are 1 to {MAX_K}")
        if self.stride is None:
            object.__setattr__(self, "stride", self.k)
        if not 1 <= self.step <= self.k:
            raise UsageError(
                f"stride is {self.stride}; accepted are 1 to k ({self.k}), or letters would be lost"
            )

    @property
    def step(self) -> int:
        """Letters from one token's start to the next one's."""
        return self.k if self.stride is None else self.stride

    @property
    def vocab_size(self) -> int:
        """4^k k-mers, 15 single letters and padding."""
        return 4**self.k + VOCAB_SIZE

    @property
    def pad_id(self) -> int:
        """The last id."""
        return 4**self.k + PAD

    def encode(self, sequence: Sequence) -> NDArray[np.int32]:
        """Token ids, int32 (tokens,).  Raises `SequenceError` for letters that are none."""
        ids = _nucleotides(sequence)
        k, step, length = self.k, self.step, len(ids)
        starts = np.arange(0, length, step)
        whole = starts[: max(0, (length - k) // step + 1)]
        numbers = np.zeros(len(starts), dtype=np.int32)
        plain = np.zeros(len(starts), dtype=np.bool_)
        plain[: len(whole)] = True
        for offset in range(k):
            letters = ids[whole + offset]
            numbers[: len(whole)] = numbers[: len(whole)] * 4 + letters
            plain[: len(whole)] &= letters <= T
        # A place yields one k-mer, or the letters up to the next place.
        counts = np.where(plain, 1, np.minimum(step, length - starts))
        first = np.cumsum(counts) - counts
        tokens = np.empty(int(counts.sum()), dtype=np.int32)
        for offset in range(step):
            spelled = ~plain & (offset < counts)
            tokens[first[spelled] + offset] = 4**k + ids[starts[spelled] + offset].astype(np.int32)
        tokens[first[plain]] = numbers[plain]
        return tokens

    def decode(self, tokens: NDArray[Any]) -> str:
        """The letters of tokens; padding is left out.  Raises `UsageError` for other ids."""
        tokens = _tokens(tokens, self.vocab_size)
        tokens = tokens[tokens != self.pad_id]
        if not len(tokens):
            return ""
        spelled = tokens >= 4**self.k
        advance = np.where(spelled, 1, self.step)
        starts = np.cumsum(advance) - advance
        ends = starts + np.where(spelled, 1, self.k)
        ids = np.zeros(int(ends.max()), dtype=np.uint8)
        for offset in range(self.k):
            shift = 2 * (self.k - 1 - offset)
            ids[starts[~spelled] + offset] = (tokens[~spelled] >> shift) & 3
        # After the k-mers, which reach into what is spelled out where a run of them ends.
        ids[starts[spelled]] = tokens[spelled] - 4**self.k
        return decode(ids)

    def to_dict(self) -> dict[str, Any]:
        """What `tokenizer_from_dict` makes the tokenizer from."""
        return {"kind": self.kind, "k": self.k, "stride": self.step}


Tokenizer: TypeAlias = NucleotideTokenizer | KmerTokenizer


def tokenizer_from_dict(config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `to_dict` described.  Raises `UsageError` for unknown keys or kinds.

    >>> tokenizer_from_dict({"kind": "kmer", "k": 6, "stride": 1})
    KmerTokenizer(k=6, stride=1)
    """
    options = dict(config)
    kind = options.pop("kind", None)
    accepted = {"nucleotide": (set(), set()), "kmer": ({"k"}, {"k", "stride"})}
    if kind not in accepted:
        raise UsageError(f"tokenizer kind is {kind!r}; accepted are {', '.join(accepted)}")
    needed, known = accepted[kind]
    if unknown := set(options) - known:
        raise UsageError(f"tokenizer {kind!r} has no option {', '.join(sorted(unknown))}")
    if missing := needed - set(options):
        raise UsageError(f"tokenizer {kind!r} needs {', '.join(sorted(missing))}")
    return NucleotideTokenizer() if kind == "nucleotide" else KmerTokenizer(**options)


def _nucleotides(sequence: Sequence) -> Ids:
    if isinstance(sequence, str | bytes):
        return encode(sequence)
    ids = np.asarray(sequence)
    if ids.ndim != 1 or ids.dtype != np.uint8:
        raise UsageError(
            f"sequence has shape {ids.shape} and dtype {ids.dtype}; "
            "give text or uint8 ids of shape (length,)"
        )
    if ids.size and ids.max() >= PAD:
        raise UsageError(f"nucleotide id {int(ids.max())}: ids of letters go from 0 to {PAD - 1}")
    return ids.copy()


def _tokens(tokens: NDArray[Any], vocab_size: int) -> NDArray[np.int64]:
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise UsageError(
            f"tokens have shape {tokens.shape} and dtype {tokens.dtype}; give integers (length,)"
        )
    tokens = tokens.astype(np.int64)
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        wrong = tokens.min() if tokens.min() < 0 else tokens.max()
        raise UsageError(f"token id {int(wrong)} is none; ids go from 0 to {vocab_size - 1}")
    return tokens
