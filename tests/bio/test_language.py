"""Batches for language models: what follows what, what counts, and what is never joined."""

from __future__ import annotations

import numpy as np
import pytest

from mambabio.alphabet import PAD, reverse_complement
from mambabio.errors import SheetError
from mambabio.language import LanguageTiles, LanguageWindows
from mambabio.sheet import load_samples
from mambabio.store import build_store
from mambacore.errors import DataError


def silent(line: str) -> None: ...


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Stretches between N runs, an IUPAC code in each; a record of 100 bases beside them."""
    folder = tmp_path_factory.mktemp("language")
    random = np.random.default_rng(0)
    letters = ["".join(random.choice(list("ACGT"), size=n)) for n in (400, 300, 100)]
    broken = letters[0][:200] + "R" + letters[0][200:] + "NNNNN" + letters[1] + "Y" + letters[1]
    (folder / "a.fa").write_text(f">a\n{broken}\n")
    (folder / "b.fa").write_text(f">b\n{letters[2]}\n")
    (folder / "sheet.csv").write_text("path\na.fa\nb.fa\n")
    sheet = load_samples(folder / "sheet.csv", labelled=False)
    return build_store(sheet, folder / "cache", n_policy="split", validation=0, log=silent)


def occurs(row: np.ndarray, store) -> bool:
    """Whether a row stands, on either strand, within one stretch of the store."""
    both = row.tobytes(), reverse_complement(row).tobytes()
    return any(seq in store.ids(r).tobytes() for r in store.records for seq in both)


def test_targets_follow_and_nothing_is_joined(store):
    assert [r.length for r in store.records] == [401, 601, 100]
    batch = LanguageWindows(store, seed=3).batch(0, 0, 1, 200, 150)
    following = np.concatenate([batch.tokens, batch.targets[:, -1:]], axis=1)
    inside = batch.tokens[:, 1:]
    assert np.array_equal(np.where(inside < 4, inside, PAD), batch.targets[:, :-1])
    assert (batch.tokens > 4).any(), "no IUPAC code was read"
    assert set(np.unique(batch.targets)) == {0, 1, 2, 3, PAD}
    assert all(occurs(row, store) for row in batch.tokens)
    assert all(occurs(row, store) for row in following if row[-1] != PAD)
    flipped = [
        row
        for row in batch.tokens
        if not any(row.tobytes() in store.ids(r).tobytes() for r in store.records)
    ]
    assert 60 < len(flipped) < 140, "about half are the other strand"


def test_rows_are_a_function_of_step_and_row(store):
    whole = LanguageWindows(store, seed=3).batch(5, 0, 1, 8, 64)
    for rank in range(4):
        part = LanguageWindows(store, seed=3).batch(5, rank, 4, 2, 64)
        for got, expected in zip(part[:2], whole[:2], strict=True):
            assert np.array_equal(got, expected[2 * rank : 2 * rank + 2])


def test_tiles_score_every_base_but_the_first_once(store):
    tiles = LanguageTiles(store, "train", 100)
    batch = tiles.batch(slice(None))
    # 4 + 6 + 1 windows; 401 and 601 bases leave one base each that the last window predicts.
    assert len(tiles) == 11
    letters = sum((store.ids(r)[1:] < 4).sum() for r in store.records)
    assert (batch.targets < 4).sum() == letters
    assert len(LanguageTiles(store, "train", 100, most=5)) == 5


def test_a_window_longer_than_every_stretch_is_refused(store):
    with pytest.raises(DataError, match="longer than every training record"):
        LanguageWindows(store, seed=0).check(601)
    with pytest.raises(DataError, match=r"label 'b' has no training record of 201"):
        LanguageWindows(store, seed=0, balanced=True).check(200)


def test_labels_are_needed_only_where_they_matter(tmp_path):
    (tmp_path / "x.fa").write_text(">r\nACGT\n")
    assert load_samples(tmp_path / "x.fa", labelled=False).labels == ("x",)
    with pytest.raises(SheetError):
        load_samples(tmp_path / "x.fa")
    (tmp_path / "s.tsv").write_text("path\tsplit\nx.fa\ttest\n")
    assert load_samples(tmp_path / "s.tsv", labelled=False).labels == ("x",)
    with pytest.raises(SheetError, match="label"):
        load_samples(tmp_path / "s.tsv")
