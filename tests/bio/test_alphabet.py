"""The alphabet: ids, complements, case, and what is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambabio import alphabet
from mambabio.alphabet import (
    LETTERS,
    PAD,
    complement,
    decode,
    encode,
    reverse_complement,
    reverse_complement_text,
    soft_mask_of,
)
from mambabio.errors import SequenceError
from mambacore.errors import UsageError

dna = st.text(alphabet=LETTERS)
cased_dna = st.text(alphabet=LETTERS + LETTERS.lower())

# What each IUPAC code stands for (NC-IUB 1984), from which its complement follows.
BASES = {
    "A": "A", "C": "C", "G": "G", "T": "T", "N": "ACGT", "R": "AG", "Y": "CT", "S": "CG",
    "W": "AT", "K": "GT", "M": "AC", "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG",
}  # fmt: skip


def test_ids_are_the_contract() -> None:
    assert encode("ACGTNRYSWKMBDHV").tolist() == list(range(15))
    assert (alphabet.A, alphabet.C, alphabet.G, alphabet.T, alphabet.N) == (0, 1, 2, 3, 4)
    assert PAD == 15
    assert alphabet.VOCAB_SIZE == 16
    assert encode("ACGT").dtype == np.uint8


@given(dna)
def test_decode_inverts_encode(text: str) -> None:
    assert decode(encode(text)) == text


@given(cased_dna)
def test_case_survives_only_as_a_mask(text: str) -> None:
    ids = encode(text)
    assert decode(ids) == text.upper()
    assert decode(ids, soft_mask_of(text)) == text


@given(dna)
def test_every_form_of_input_gives_the_same_ids(text: str) -> None:
    raw = text.encode()
    for form in (raw, bytearray(raw), memoryview(raw), np.frombuffer(raw, dtype=np.uint8)):
        np.testing.assert_array_equal(encode(form), encode(text))


def test_complement_of_a_code_stands_for_the_complements_of_its_bases() -> None:
    pairs = dict(zip("ACGT", "TGCA", strict=True))
    for letter, bases in BASES.items():
        other = decode(complement(encode(letter)))
        assert set(BASES[other]) == {pairs[base] for base in bases}, letter


@given(dna)
def test_reverse_complement_twice_is_the_sequence(text: str) -> None:
    ids = encode(text)
    np.testing.assert_array_equal(reverse_complement(reverse_complement(ids)), ids)


@given(dna, dna)
def test_reverse_complement_of_a_join_is_the_join_reversed(left: str, right: str) -> None:
    whole = reverse_complement(encode(left + right))
    parts = [reverse_complement(encode(right)), reverse_complement(encode(left))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


@given(cased_dna)
def test_reverse_complement_keeps_the_soft_mask(text: str) -> None:
    ids, mask = encode(text), soft_mask_of(text)
    assert decode(reverse_complement(ids), mask[::-1]) == reverse_complement_text(text)


def test_reverse_complement_works_on_rows_and_keeps_padding() -> None:
    rows = np.array([[0, 1, PAD], [2, 2, 3]], dtype=np.uint8)
    np.testing.assert_array_equal(reverse_complement(rows), [[PAD, 2, 3], [0, 1, 1]])
    assert reverse_complement(rows).flags.writeable


def test_u_reads_as_t() -> None:
    assert encode("ACGUu").tolist() == encode("ACGTT").tolist()
    assert reverse_complement_text("AUuc") == "gaAT"


@given(dna, st.integers(0, 255).filter(lambda x: chr(x).upper() not in LETTERS + "U"), dna)
def test_anything_else_is_refused_where_it_stands(before: str, bad: int, after: str) -> None:
    with pytest.raises(SequenceError) as caught:
        encode(before.encode() + bytes([bad]) + after.encode())
    assert caught.value.position == len(before)
    assert f"position {len(before) + 1} " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("AC-GT", "is a gap"),
        ("AC.GT", "is a gap"),
        ("ACG*", "a stop"),
        ("ACXGT", "IUPAC codes"),
        ("AC GT", "letter ' '"),
        ("ACéGT", "byte 0xc3"),
        ("AC\0GT", "byte 0x00"),
        ("ACGT>two", "joining files"),
        ("MTEYKLVVVGAGGVGKSALTIQLIQNHFVDEYDPTIEDSYRKQ", "looks like protein"),
    ],
)
def test_refusals_say_what_it_is(text: str, said: str) -> None:
    with pytest.raises(SequenceError, match="position") as caught:
        encode(text)
    assert said in str(caught.value)


def test_a_stray_letter_in_dna_is_not_called_protein() -> None:
    with pytest.raises(SequenceError) as caught:
        encode("ACGTTGCA" * 20 + "E")
    assert "protein" not in str(caught.value)


def test_padding_is_no_letter() -> None:
    assert decode(np.array([0, PAD, 3, PAD], dtype=np.uint8)) == "AT"
    with pytest.raises(UsageError, match="16"):
        decode(np.array([16], dtype=np.uint8))


def test_arrays_of_other_types_are_refused() -> None:
    with pytest.raises(UsageError, match="int64"):
        encode(np.array([65, 67]))


def test_errors_survive_the_way_back_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(SequenceError("x.fa: bad", position=3)))
    assert (str(error), error.position) == ("x.fa: bad", 3)
