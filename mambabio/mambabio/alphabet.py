"""The letters of DNA as small integers: A C G T N, the IUPAC codes, and padding.

Token ids: A=0 C=1 G=2 T=3 N=4, then R Y S W K M B D H V = 5..14, padding 15. U reads as T.
Every conversion is one pass of a 256-byte table over the bytes.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mambabio.errors import SequenceError
from mambacore.errors import UsageError

Ids: TypeAlias = NDArray[np.uint8]
Mask: TypeAlias = NDArray[np.bool_]

LETTERS = "ACGTNRYSWKMBDHV"
A, C, G, T, N = range(5)
PAD = 15
VOCAB_SIZE = 16

# What `code` gives for bytes that are no plain letter.
CODE_URACIL = 16
CODE_BLANK = 254
CODE_BAD = 255

_COMPLEMENT_LETTERS = "TGCANYRSWMKVHDB"
_BLANKS = b" \t\n\r\v\f"
_PROTEIN_ONLY = b"EFILPQZJXOefilpqzjxo"


def _code_table() -> bytes:
    table = bytearray([CODE_BAD]) * 256
    for i, letter in enumerate(LETTERS):
        table[ord(letter)] = table[ord(letter.lower())] = i
    table[ord("U")] = table[ord("u")] = CODE_URACIL
    for blank in _BLANKS:
        table[blank] = CODE_BLANK
    return bytes(table)


def _text_complement_table() -> bytes:
    upper = bytes.maketrans(LETTERS.encode() + b"U", _COMPLEMENT_LETTERS.encode() + b"A")
    both = bytearray(upper)
    for letter in LETTERS + "U":
        both[ord(letter.lower())] = upper[ord(letter)] | 0x20
    return bytes(both)


_CODES = _code_table()
_TEXT_COMPLEMENT = _text_complement_table()
_DECODE = LETTERS.encode() + b"\0" * (256 - len(LETTERS))
_COMPLEMENT_IDS = bytes(LETTERS.index(x) for x in _COMPLEMENT_LETTERS) + bytes([PAD])
_COMPLEMENT_TABLE = _COMPLEMENT_IDS + bytes(range(VOCAB_SIZE, 256))

COMPLEMENT: Ids = np.frombuffer(_COMPLEMENT_IDS, dtype=np.uint8)
"""Id of the complement of each id, read-only, shape (16,); padding is its own complement."""


def code(raw: bytes | bytearray) -> Ids:
    """Table look-up without judgement: ids 0 to 14, `CODE_URACIL`, `CODE_BLANK` or `CODE_BAD`.

    >>> code(b"aCU -").tolist()
    [0, 1, 16, 254, 255]
    """
    return np.frombuffer(bytearray(raw).translate(_CODES), dtype=np.uint8)


def encode(sequence: str | bytes | bytearray | memoryview | NDArray[np.uint8]) -> Ids:
    """Token ids of a nucleotide sequence; lower case reads as upper case, U as T.

    sequence: text or its ASCII bytes; an array holds the bytes (not ids), shape (length,).
    Returns a new uint8 array (length,) with values 0 to 14.
    Raises `SequenceError` (its `position` is 0-based) for anything that is no nucleotide code:
    gaps, stops, blanks, amino acids.

    >>> encode("ACGTNacgu").tolist()
    [0, 1, 2, 3, 4, 0, 1, 2, 3]
    """
    raw = _as_bytes(sequence)
    ids = code(raw)
    if ids.size and ids.max() >= VOCAB_SIZE:
        bad = ids > CODE_URACIL
        if bad.any():
            position = int(bad.argmax())
            raise SequenceError(
                f"{describe_letter(raw, position)} at position {position + 1} "
                f"{explain_letter(raw, position)}",
                position=position,
            )
        ids[ids == CODE_URACIL] = T
    return ids


def soft_mask_of(sequence: str | bytes | bytearray | memoryview | NDArray[np.uint8]) -> Mask:
    """True where a letter is lower case, shape (length,).

    >>> soft_mask_of("ACgtN").tolist()
    [False, False, True, True, False]
    """
    return (np.frombuffer(_as_bytes(sequence), dtype=np.uint8) & 0x20).astype(np.bool_)


def decode(ids: Ids, mask: Mask | None = None) -> str:
    """Letters of token ids; padding is left out.

    ids: (length,) values 0 to 15.  mask: (length,) True where a letter shall be lower case.
    Raises `UsageError` for an id above 15.

    >>> decode(np.array([0, 1, 2, 3, 15, 15], dtype=np.uint8))
    'ACGT'
    """
    ids = np.ascontiguousarray(ids, dtype=np.uint8)
    if ids.size and ids.max() >= VOCAB_SIZE:
        raise UsageError(f"token id {int(ids.max())} is not a nucleotide; ids go from 0 to {PAD}")
    text = np.frombuffer(ids.tobytes().translate(_DECODE), dtype=np.uint8)
    if mask is not None:
        if mask.shape != ids.shape:
            raise UsageError(f"mask has shape {mask.shape}, ids have {ids.shape}: make them equal")
        text = text | (mask.astype(np.uint8) << 5)
    if ids.size and ids.max() == PAD:
        text = text[ids != PAD]
    return text.tobytes().decode("ascii")


def complement(ids: Ids) -> Ids:
    """Complement of every id, same shape; R and Y, K and M, B and V, D and H change places.

    >>> decode(complement(encode("ACGTRBN")))
    'TGCAYVN'
    """
    ids = np.ascontiguousarray(ids, dtype=np.uint8)
    out = np.frombuffer(bytearray(ids.tobytes()).translate(_COMPLEMENT_TABLE), dtype=np.uint8)
    return out.reshape(ids.shape)


def reverse_complement(ids: Ids) -> Ids:
    """The other strand, read in its own direction, along the last axis.

    A new contiguous array. Padding stays padding, so padding at the right comes out at the left:
    reverse only the real part of a padded row. A soft mask turns with the sequence as
    ``mask[::-1]``.

    >>> decode(reverse_complement(encode("AACGN")))
    'NCGTT'
    """
    return complement(np.asarray(ids, dtype=np.uint8)[..., ::-1])


def reverse_complement_text(sequence: str) -> str:
    """The other strand of a text, keeping upper and lower case (the soft mask).

    U complements to A. Raises `SequenceError` like `encode`.

    >>> reverse_complement_text("AAcgN")
    'NcgTT'
    """
    encode(sequence)
    return sequence.encode("ascii").translate(_TEXT_COMPLEMENT)[::-1].decode("ascii")


def describe_letter(raw: bytes, position: int) -> str:
    """The letter at a 0-based position as it can be shown: ``letter 'E'`` or ``byte 0x00``.

    >>> describe_letter(b"AE", 1)
    "letter 'E'"
    """
    byte = raw[position]
    return f"letter {chr(byte)!r}" if 32 <= byte < 127 else f"byte 0x{byte:02x}"


def explain_letter(raw: bytes, position: int) -> str:
    """Why the letter at a 0-based position is refused and what to do; follows a place name.

    raw: the sequence around it, which also tells whether the whole looks like protein.
    """
    byte = raw[position : position + 1]
    refused = "is not a nucleotide"
    if looks_like_protein(raw[max(position - 2000, 0) : position + 2000]):
        return f"{refused}: this looks like protein; give the nucleotide sequence instead"
    if byte in b"-.":
        return f"is a gap: give the sequence without its alignment (remove every {byte.decode()!r})"
    if byte == b"*":
        return f"{refused} (a stop in a protein?): give the nucleotide sequence"
    if byte == b">":
        return (
            f"{refused}: a '>' inside a line, often from joining files of which one lacks the "
            "newline at its end; put it on a line of its own"
        )
    if not 32 <= byte[0] < 127:
        return f"{refused}: the data are binary or damaged; give text"
    return (
        f"{refused}: accepted are A C G T U N and the IUPAC codes R Y S W K M B D H V, "
        "in upper or lower case"
    )


def looks_like_protein(raw: bytes) -> bool:
    """Whether a refused sequence is amino acids: over 5 % of letters that only proteins use.

    >>> looks_like_protein(b"MTEYKLVVVGAGGVGKSALTIQLIQ"), looks_like_protein(b"ACGT-ACGTNNE" * 9)
    (True, False)
    """
    letters = np.frombuffer(raw.translate(None, b"*-. \t\r\n"), dtype=np.uint8)
    if letters.size < 4:
        return False
    exclusive = np.isin(letters, np.frombuffer(_PROTEIN_ONLY, dtype=np.uint8)).mean()
    plain = np.isin(letters, np.frombuffer(b"ACGTUNacgtun", dtype=np.uint8)).mean()
    alphabetic = np.isin(letters | 0x20, np.arange(ord("a"), ord("z") + 1)).mean()
    return bool(exclusive > 0.05 and plain < 0.75 and alphabetic > 0.95)


def _as_bytes(sequence: str | bytes | bytearray | memoryview | NDArray[np.uint8]) -> bytes:
    if isinstance(sequence, bytes):
        return sequence
    if isinstance(sequence, str):
        # More than one byte a letter only from the first refused letter on: positions hold.
        return sequence.encode("utf-8", errors="replace")
    if isinstance(sequence, np.ndarray):
        if sequence.dtype != np.uint8:
            raise UsageError(f"sequence has dtype {sequence.dtype}; give text, bytes or uint8")
        return sequence.tobytes()
    return bytes(sequence)
