"""The sequence store: what goes in, what is held out and dropped, caching, several processes."""

from __future__ import annotations

import gzip
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambabio.alphabet import Ids, decode, encode, reverse_complement
from mambabio.duplicates import accession, circular_fingerprint, same_circle, strand_digest
from mambabio.errors import SequenceError, SheetError
from mambabio.holdout import Unit, hold_out
from mambabio.sheet import load_samples
from mambabio.store import SequenceStore, build_store
from mambacore.errors import DataError, UsageError

RNG = np.random.default_rng(1)


def random_ids(length: int) -> Ids:
    return RNG.integers(0, 4, length).astype(np.uint8)


def quiet(message: str) -> None:
    """No log."""


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., SequenceStore]:
    """Store of files {name: {record: sequence}} and sheet rows."""

    def build(files: dict[str, dict[str, str]], *rows: str, **options) -> SequenceStore:
        for name, records in files.items():
            text = "".join(f">{record}\n{bases}\n" for record, bases in records.items())
            (tmp_path / name).write_text(text)
        sheet = tmp_path / "sheet.tsv"
        sheet.write_text("\n".join(["label\tpath\tsplit\tregion\tcircular", *rows]) + "\n")
        options = {"log": quiet, "validation": 0} | options
        return build_store(load_samples(sheet), tmp_path / "cache", **options)

    return build


def read(store: SequenceStore) -> list[tuple[str, str, int, str]]:
    return [(r.name, r.split, r.start, decode(store.ids(r))) for r in store.records]


WITH_N = "N" * 5 + "ACGT" * 20 + "NN" + "GGCA" * 20 + "N" + "ACG" + "N"


@pytest.mark.parametrize(
    ("policy", "pieces"),
    [
        ("cut", [(0, "ACGT" * 20 + "GGCA" * 20 + "ACG")]),
        ("split", [(5, "ACGT" * 20), (87, "GGCA" * 20)]),
        ("keep", [(0, WITH_N)]),
    ],
)
def test_n_is_cut_split_at_or_kept(make, policy: str, pieces: list) -> None:
    store = make({"a.fa": {"a": WITH_N, "gone": "NNN"}}, "ape\ta.fa\ttrain", n_policy=policy)
    assert [(start, bases) for _, _, start, bases in read(store)] == pieces
    short = {"piece between N runs under 64 bases": 1} if policy == "split" else {}
    assert store.dropped_counts == {"only N": 1} | short


def test_rows_give_label_split_region_and_circularity(make, tmp_path: Path) -> None:
    ids = random_ids(300)
    text = decode(ids)
    with gzip.open(tmp_path / "b.fa.gz", "wt") as file:
        file.write(f">x\n{text[:70]}\n{text[70:]}\n>y:1\n{text}\n")
    store = make(
        {"a.fa": {"a": "ACGTACGTAA"}},
        "cow\tb.fa.gz\ttrain\tx:11-20",
        "bat\tb.fa.gz\ttrain\t{y:1}:291-",
        "bat\ta.fa\ttest\t\tyes",
    )
    assert store.labels == ("bat", "cow")
    assert [r.label_id for r in store.records] == [1, 0, 0]
    assert [r.row for r in store.records] == [2, 3, 4]
    assert read(store)[0] == ("x", "train", 10, text[10:20])
    assert read(store)[1] == ("y:1", "train", 290, text[290:])
    assert [r.circular for r in store.records] == [False, False, True]
    assert [Path(entry["path"]).name for entry in store.inputs] == ["b.fa.gz", "a.fa"]
    with pytest.raises(SheetError, match=r"line 2 of the sheet.*300"):
        make({}, "cow\tb.fa.gz\ttrain\tx:291-301")
    with pytest.raises(SheetError, match=r"line 2 of the sheet.*no record 'z'"):
        make({}, "cow\tb.fa.gz\ttrain\tz")


@given(st.integers(1, 40), st.integers(-90, 90), st.data())
def test_circular_records_wrap_and_linear_ones_refuse(n: int, start: int, data) -> None:
    store = _stored(n)
    length = data.draw(st.integers(0, n))
    circle, line = store.records
    text = decode(store.ids(circle))
    expected = (text * 12)[start % n :][:length]
    assert decode(store.ids(circle, start, length)) == expected
    if 0 <= start and start + length <= n:
        assert decode(store.ids(line, start, length)) == expected
    else:
        with pytest.raises(UsageError, match="linear"):
            store.ids(line, start, length)
    with pytest.raises(UsageError):
        store.ids(circle, 0, n + 1)


def _stored(n: int) -> SequenceStore:
    """A circular and a linear record of the same bases, without a file."""
    from mambabio.store import StoredRecord

    records = tuple(StoredRecord("r", 0, "train", 0, n, c, 0, 0, 0, i) for i, c in ((0, 1), (1, 0)))
    store = SequenceStore(("a",), records, (), {}, "cut", Path("none"))
    store.__dict__["all_ids"] = np.random.default_rng(n).integers(0, 4, n).astype(np.uint8)
    return store


def test_known_records_are_dropped_from_test_and_counted(make) -> None:
    one, two, three, four = (decode(random_ids(200)) for _ in range(4))
    other_strand = decode(reverse_complement(encode(two)))
    store = make(
        {
            "train.fa": {"NC_000001.1": one, "s2": two, "chr1": three},
            "val.fa": {"v1": four, "v2": one},
            "test.fa": {
                "t1": one[:90] + "NNN" + one[90:],
                "t2": other_strand,
                "NC_000001.2": one[:150],
                "chr1": three[:150],
                "t4": four,
                "new": decode(random_ids(200)),
            },
        },
        "ape\ttrain.fa\ttrain",
        "ape\tval.fa\tval",
        "ape\ttest.fa\ttest",
    )
    assert [r.name for r in store.select("test")] == ["chr1", "new"]
    assert [r.name for r in store.select("val")] == ["v1"]
    assert dict(store.dropped) == {
        "val record identical to a train record": ("v2",),
        "test record identical to a train record": ("t1", "t2"),
        "test record with the accession of a train record": ("NC_000001.2",),
        "test record identical to a val record": ("t4",),
    }


def test_test_records_equal_to_held_out_ones_are_dropped_and_not_the_held_out(make) -> None:
    bases = [decode(random_ids(100)) for _ in range(20)]
    store = make(
        {
            "train.fa": {f"r{i}": b for i, b in enumerate(bases)},
            "test.fa": {**{f"t{i}": b for i, b in enumerate(bases)}, "x": "ACGT" * 30},
        },
        "ape\ttrain.fa",
        "ape\ttest.fa\ttest",
        validation=0.1,
    )
    assert len(store.select("val")) == 2
    assert len(store.select("train")) == 18
    assert [r.name for r in store.select("test")] == ["x"]


def test_validation_is_the_end_of_a_single_long_record(make) -> None:
    a, b = decode(random_ids(1000)), decode(random_ids(300))
    files = {"a.fa": {"a": a}, "b.fa": {"b": b}}
    rows = ("ape\ta.fa\t\t\tyes", "bat\tb.fa")
    store = make(files, *rows, validation=0.15)
    assert read(store) == [
        ("a", "train", 0, a[:850]),
        ("a", "val", 850, a[850:]),
        ("b", "train", 0, b),  # its end would be too short to score
    ]
    assert not any(record.circular for record in store.records[:2])
    assert len(make(files, *rows, validation=0).select("val")) == 0


def test_the_end_held_out_of_a_record_in_pieces_is_its_last_pieces(make) -> None:
    stretches = [decode(random_ids(n)) for n in (400, 300, 300)]
    store = make(
        {"a.fa": {"a": "N".join(stretches)}}, "ape\ta.fa", n_policy="split", validation=0.4
    )
    assert [(split, bases) for _, split, _, bases in read(store)] == [
        ("train", stretches[0]),
        ("train", stretches[1][:200]),
        ("val", stretches[1][200:]),
        ("val", stretches[2]),
    ]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(0, 5), st.data())
def test_hold_out_depends_on_sequences_not_on_their_order(digests, seed, data) -> None:
    units = [Unit(str(d), 100 + d) for d in digests]
    shuffled = data.draw(st.permutations(units))
    whole, ends = hold_out(units, 0.1, str(seed))
    again, ends_again = hold_out(shuffled, 0.1, str(seed))
    assert sorted(units[i].digest for i in whole) == sorted(shuffled[i].digest for i in again)
    assert sorted(ends.values()) == sorted(ends_again.values())
    # Equal sequences stay together, and something is left to train on.
    assert {units[i].digest for i in whole}.isdisjoint(
        {u.digest for i, u in enumerate(units) if i not in whole}
    )
    assert len(whole) < len(units)
    distinct = len(set(digests))
    if distinct >= 10:
        assert len({units[i].digest for i in whole}) <= round(distinct / 10)
        assert not ends


def test_hold_out_never_takes_a_record_that_training_needs() -> None:
    units = [Unit("big", 10_000), *(Unit(str(i), 100) for i in range(19))]
    for seed in range(30):
        whole, _ = hold_out(units, 0.1, str(seed))
        assert len(whole) == 2
        assert 0 not in whole


def test_a_store_is_used_again_until_an_input_changes(make, tmp_path: Path, monkeypatch) -> None:
    from mambabio import store_build

    reads: list[str] = []
    original = store_build.read_records
    monkeypatch.setattr(
        store_build,
        "read_records",
        lambda path, **k: reads.append(path.name) or original(path, **k),
    )
    files = {"a.fa": {"a": "ACGTACGT"}, "b.fa": {"b": "ACGTTTTT"}}
    rows = ("ape\ta.fa", "bat\tb.fa")
    first = make(files, *rows)
    assert reads == ["a.fa", "b.fa"]
    again = make({}, *rows)
    assert reads == ["a.fa", "b.fa"]
    assert again == first
    os.utime(tmp_path / "a.fa", (1, 1))  # another time, the same content
    assert make({}, *rows) == first
    assert len(reads) == 2
    changed = make({"a.fa": {"a": "ACGTACGA"}}, *rows)
    os.utime(tmp_path / "a.fa", (2, 2))
    assert len(reads) == 4
    assert decode(changed.ids(0)) == "ACGTACGA"
    assert changed.inputs[0]["sha256"] != first.inputs[0]["sha256"]
    other = make({}, *rows, n_policy="keep")
    assert len(reads) == 6
    assert other.data != changed.data
    assert changed.data.exists()
    changed.data.write_bytes(b"")  # damaged: built again
    assert decode(make({}, *rows).ids(0)) == "ACGTACGA"


def test_nothing_half_written_stays_after_an_error(make, tmp_path: Path) -> None:
    with pytest.raises(SequenceError, match="b.fa"):
        make({"a.fa": {"a": "ACGT"}, "b.fa": {"b": "ACEFILPQ"}}, "ape\ta.fa", "bat\tb.fa")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"]


def test_labels_that_have_nothing_to_train_on_are_refused(make) -> None:
    with pytest.raises(DataError, match=r"label 'bat'.*b\.fa"):
        make({"a.fa": {"a": "ACGT"}, "b.fa": {"b": "NNNN"}}, "ape\ta.fa", "bat\tb.fa")
    with pytest.raises(DataError, match="no sequence is left"):
        make({"a.fa": {"a": "NNN"}}, "ape\ta.fa\ttest")


def test_wrong_options_are_refused(make) -> None:
    with pytest.raises(UsageError, match="n_policy is 'drop'; accepted are cut, split, keep"):
        make({"a.fa": {"a": "ACGT"}}, "ape\ta.fa", n_policy="drop")
    with pytest.raises(UsageError, match=r"validation is 1\.5"):
        make({}, "ape\ta.fa", validation=1.5)


def test_a_cache_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">a\nACGT\n")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        build_store(load_samples(tmp_path), tmp_path / "file" / "cache", log=quiet)


def test_stores_pickle_by_path(make) -> None:
    store = make({"a.fa": {"a": "ACGTAC"}}, "ape\ta.fa")
    assert decode(store.ids(0)) == "ACGTAC"
    data = pickle.dumps(store)
    assert b"memmap" not in data
    assert decode(pickle.loads(data).ids(0)) == "ACGTAC"
    assert not store.all_ids.flags.writeable


def test_two_processes_build_one_store(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.fa").write_text(f">{name}\n{decode(random_ids(100_000))}\n")
    code = (
        "import sys; from mambabio.sheet import load_samples; from mambabio.store import *\n"
        "s = build_store(load_samples(sys.argv[1]), sys.argv[1] + '/cache')\n"
        "print(int(s.all_ids.sum()), sum(r.length for r in s.records), s.data)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    results = [process.communicate(timeout=60) for process in processes]
    assert all(process.returncode == 0 for process in processes), results
    assert len({out for out, _ in results}) == 1
    assert sum("reading 2 sequence files" in err for _, err in results) == 1
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".ids", ".json", ".lock"]


@given(st.integers(31, 200), st.integers(0, 400), st.booleans(), st.integers(0, 99))
def test_rotations_and_strands_are_the_same_circle(n, shift, flip, seed) -> None:
    ids = np.random.default_rng(seed).integers(0, 5, n).astype(np.uint8)
    other = np.roll(ids, shift)
    other = reverse_complement(other) if flip else other
    assert circular_fingerprint(ids) == circular_fingerprint(other)
    assert same_circle(ids, other) is not None
    changed = other.copy()
    changed[n // 2] = (changed[n // 2] + 1) % 4
    assert same_circle(ids, changed) is None
    assert (strand_digest(ids) == strand_digest(other)) == (
        ids.tobytes() in (other.tobytes(), reverse_complement(other).tobytes())
    )


def test_only_accessions_are_taken_for_accessions() -> None:
    names = ["NC_012920.1", "NM_000546.6", "AC009238.4", "CM000663", "JAAAAA010000001.1"]
    assert [accession(name) for name in names] == [name.split(".")[0] for name in names]
    for name in ("chr1", "contig_12", "scaffold12345", "7", "NODE_1_length_500", "seq00001"):
        assert accession(name) is None


def test_the_human_mtdna_that_differs_by_an_n_is_dropped(shared_data: Path, tmp_path: Path) -> None:
    lines = ["label\tpath\tsplit"]
    for name, split in (("vertebrates", "train"), ("new_vertebrates_test", "test")):
        lines.append(f"Mammals\t{shared_data}/dna/mtdna/{name}/Mammals.fa.gz\t{split}")
    (tmp_path / "sheet.tsv").write_text("\n".join(lines) + "\n")
    store = build_store(load_samples(tmp_path / "sheet.tsv"), tmp_path / "cache", log=quiet)
    assert "NC_012920.1" in store.dropped["test record identical to a train record"]
    assert len(store.select("val")) == round(
        0.1 * (len(store.select("train") + store.select("val")))
    )
