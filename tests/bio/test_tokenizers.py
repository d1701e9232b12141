"""Tokenizers: nothing is lost, and the ids are what the docstring says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambabio.alphabet import LETTERS, PAD, encode
from mambabio.errors import SequenceError
from mambabio.tokenizers import KmerTokenizer, NucleotideTokenizer, tokenizer_from_dict
from mambacore.errors import UsageError

# Ambiguous letters are rare, so that k-mers and spelling alternate.
sequences = st.lists(
    st.one_of(st.text(alphabet="ACGT", max_size=12), st.sampled_from(list(LETTERS)))
).map("".join)
kmers = st.integers(1, 7).flatmap(
    lambda k: st.builds(KmerTokenizer, st.just(k), st.integers(1, k) | st.none())
)
tokenizers = kmers | st.just(NucleotideTokenizer())


@given(tokenizers, sequences)
def test_decode_inverts_encode(tokenizer: KmerTokenizer | NucleotideTokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokens.size == 0 or 0 <= tokens.min() <= tokens.max() < tokenizer.pad_id


@given(tokenizers, sequences, st.integers(0, 5))
def test_padding_is_left_out(
    tokenizer: KmerTokenizer | NucleotideTokenizer, text: str, padding: int
) -> None:
    tokens = np.pad(tokenizer.encode(text), (0, padding), constant_values=tokenizer.pad_id)
    assert tokenizer.decode(tokens) == text


@given(tokenizers)
def test_the_configuration_survives_json(tokenizer: KmerTokenizer | NucleotideTokenizer) -> None:
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again == tokenizer
    assert again.encode("ACGTNACGTTA").tolist() == tokenizer.encode("ACGTNACGTTA").tolist()


@given(st.integers(1, 7), sequences)
def test_stride_one_gives_a_token_a_letter(k: int, text: str) -> None:
    assert len(KmerTokenizer(k, 1).encode(text)) == len(text)


@given(st.integers(1, 7), st.integers(0, 20))
def test_whole_kmers_cost_one_token_each(k: int, count: int) -> None:
    assert len(KmerTokenizer(k).encode("ACGTTGC" * k * count)) == 7 * count


def test_kmer_ids_count_in_base_four() -> None:
    tokenizer = KmerTokenizer(2)
    assert tokenizer.encode("AAACTT").tolist() == [0, 1, 15]
    assert tokenizer.encode("ANT").tolist() == [16, 20, 19]
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (32, 31)


@given(sequences)
def test_the_default_is_the_alphabet(text: str) -> None:
    tokenizer = NucleotideTokenizer()
    np.testing.assert_array_equal(tokenizer.encode(text), encode(text))
    np.testing.assert_array_equal(tokenizer.encode(encode(text)), encode(text))
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (16, PAD)


@pytest.mark.parametrize(
    "make",
    [
        lambda: KmerTokenizer(0),
        lambda: KmerTokenizer(13),
        lambda: KmerTokenizer(3, 4),
        lambda: KmerTokenizer(3, 0),
        lambda: tokenizer_from_dict({"kind": "bpe"}),
        lambda: tokenizer_from_dict({"kind": "kmer"}),
        lambda: tokenizer_from_dict({"kind": "nucleotide", "k": 3}),
        lambda: KmerTokenizer(3).decode(np.array([80])),
        lambda: KmerTokenizer(3).decode(np.array([-1])),
        lambda: KmerTokenizer(3).decode(np.array([0.5])),
        lambda: NucleotideTokenizer().encode(np.array([PAD], dtype=np.uint8)),
        lambda: NucleotideTokenizer().encode(np.array([1, 2])),
    ],
)
def test_bad_arguments_are_named(make: object) -> None:
    with pytest.raises(UsageError):
        make()  # type: ignore[operator]


def test_bad_letters_are_refused() -> None:
    with pytest.raises(SequenceError, match="position 3"):
        KmerTokenizer(2).encode("AC-T")
