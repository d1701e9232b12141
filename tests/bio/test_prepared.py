"""A prepared folder is the store that was made, wherever it stands, or says what is wrong."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from mambabio.errors import SheetError
from mambabio.prepared import is_prepared, load_sequences, open_prepared, prepare, store_of
from mambabio.sheet import load_samples
from mambabio.store import build_store
from mambacore.errors import DataError, UsageError


def silent(line: str) -> None: ...


@pytest.fixture
def sheet(tmp_path):
    random = np.random.default_rng(0)
    for name in ("ape", "bat"):
        letters = ["".join(random.choice(list("ACGT"), 300)) for _ in range(6)]
        text = "".join(f">{name}{i}\n{x[:90]}NNN{x[90:]}\n" for i, x in enumerate(letters))
        (tmp_path / f"{name}.fa").write_text(text)
    (tmp_path / "s.csv").write_text("label,path,region\nape,ape.fa,ape1\nbat,bat.fa,bat0\n")
    return tmp_path


def content(store):
    records = [(r.name, r.label_id, r.split, r.start, r.circular) for r in store.records]
    return store.labels, store.n_policy, records, [store.ids(r).tolist() for r in store.records]


@pytest.mark.parametrize("source", [".", "s.csv"])
def test_it_is_the_store_and_needs_the_sequences_no_more(sheet, tmp_path_factory, source):
    options = {"n_policy": "split", "validation": 0.3, "seed": 5, "log": silent}
    place = tmp_path_factory.mktemp("elsewhere")
    expected = content(build_store(load_samples(sheet / source), place / "cache", **options))
    prepare(load_samples(sheet / source), place / "made", **options)
    assert sorted(p.name for p in (place / "made").iterdir()) == [
        "prepared.json", "store.ids", "store.json"
    ]  # fmt: skip
    shutil.rmtree(sheet)
    shutil.move(place / "made", place / "moved")
    assert content(open_prepared(place / "moved").store) == expected
    again = load_sequences(place / "moved")
    said: list[str] = []
    store = store_of(again, "unused", n_policy="split", validation=0.1, seed=5, log=said.append)
    assert content(store) == expected
    assert "validation records are those of the preparation" in said[0]
    with pytest.raises(UsageError, match="give --data.n_policy split"):
        store_of(again, "unused", n_policy="cut", validation=0.3, seed=5, log=silent)
    with pytest.raises(SheetError, match="unknown label 'bat'"):
        load_sequences(place / "moved", labels=["ape"])


def test_an_earlier_preparation_is_replaced_and_nothing_else(sheet):
    samples = load_samples(sheet / "s.csv")
    made = sheet / "made"
    prepare(samples, made, validation=0, log=silent)
    before = content(open_prepared(made).store)
    prepare(load_samples(sheet / "ape.fa", labelled=False), made, log=silent)
    assert content(open_prepared(made).store) != before
    with pytest.raises(UsageError, match="is not empty"):
        prepare(samples, sheet, log=silent)
    with pytest.raises(UsageError, match="is a file"):
        prepare(samples, sheet / "s.csv", log=silent)
    (sheet / "bat.fa").write_text(">x\nACGT\n!!\n")
    with pytest.raises(DataError):
        prepare(load_samples(sheet / "bat.fa", labelled=False), sheet / "new", log=silent)
    assert not (sheet / "new").exists()
    assert is_prepared(made)


def test_damage_is_named(sheet):
    made = sheet / "made"
    prepare(load_samples(sheet / "s.csv"), made, validation=0, log=silent)
    ids = made / "store.ids"
    ids.write_bytes(ids.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"store\.ids has .* bytes"):
        open_prepared(made)
    ids.unlink()
    with pytest.raises(DataError, match="no whole folder"):
        open_prepared(made)
    (made / "prepared.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(DataError, match="another version"):
        open_prepared(made)
