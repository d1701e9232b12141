"""Splitting a sheet: near-duplicates are found, listed and kept on one side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabio.alphabet import Ids, decode, reverse_complement
from mambabio.containment import contained_pairs, containment, kmer_hashes
from mambabio.sheet import load_samples
from mambabio.split import split_sheet
from mambabio.store import build_store
from mambacore.errors import DataError, UsageError


def random_ids(length: int, seed: int) -> Ids:
    return np.random.default_rng(seed).integers(0, 4, length).astype(np.uint8)


def write(folder: Path, records: dict[str, dict[str, Ids]]) -> Path:
    for label, of_label in records.items():
        text = "".join(f">{name}\n{decode(ids)}\n" for name, ids in of_label.items())
        (folder / f"{label}.fa").write_text(text)
    return folder


def split(folder: Path, **options):
    options = {"log": lambda line: None, "cache_dir": folder / "cache"} | options
    return split_sheet(load_samples(folder), folder / "out.tsv", **options)


def test_duplicates_are_listed_with_their_relation_and_stay_together(tmp_path: Path) -> None:
    base = random_ids(3000, 0)
    mutated = base.copy()
    mutated[1500] = (mutated[1500] + 1) % 4
    apes = {
        "first": base,
        "twin": base,
        "turned": np.roll(base, 700),
        "strand": reverse_complement(base),
        "both": np.roll(reverse_complement(base), 11),
        "near": mutated,
        "part": base[500:1500],
        "NC_000001.1": random_ids(900, 1),
        "NC_000001.2": random_ids(900, 2),
        **{f"r{i}": random_ids(1000, 10 + i) for i in range(40)},
    }
    bats = {f"b{i}": random_ids(1000, 100 + i) for i in range(20)} | {"guest": base}
    result = split(write(tmp_path, {"ape": apes, "bat": bats}))
    relation = {(p.one.split(": ")[1], p.other.split(": ")[1]): p for p in result.pairs}
    assert relation["first", "twin"].relation == "identical"
    assert relation["first", "turned"].relation == "rotated"
    assert relation["first", "strand"].relation == "reverse complement"
    assert relation["first", "both"].relation == "rotated reverse complement"
    assert relation["first", "guest"].relation == "identical"
    assert relation["first", "near"].relation == "contained"
    assert relation["first", "near"].containment == pytest.approx(1 - 31 / 2970)
    assert relation["first", "part"].containment == 1
    assert relation["NC_000001.1", "NC_000001.2"].relation == "accession"
    lines = result.duplicates.read_text().splitlines()
    assert len(lines) == len(result.pairs) + 1
    store = build_store(load_samples(result.sheet), tmp_path / "c", log=lambda line: None)
    assert not store.dropped
    side = {record.name: record.split for record in store.records}
    assert len(side) == len(apes) + len(bats)
    alike = ("first", "twin", "turned", "strand", "both", "near", "part", "guest")
    assert len({side[name] for name in alike}) == 1
    assert side["NC_000001.1"] == side["NC_000001.2"]
    for label, total in (("ape", 49), ("bat", 20)):
        assert result.counts[label, "test"] == pytest.approx(total / 10, abs=1)
        assert result.counts[label, "val"] == pytest.approx(total / 10, abs=1)


def test_the_same_seed_gives_the_same_sheet_whatever_the_order(tmp_path: Path) -> None:
    records = {f"r{i}": random_ids(500, i) for i in range(30)}
    turned = dict(reversed(records.items()))
    sides = []
    for number, (order, seed) in enumerate(((records, 0), (turned, 0), (records, 1))):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, {"ape": order, "bat": {"x": random_ids(500, 98), "y": random_ids(500, 99)}})
        result = split(folder, seed=seed, fractions=(0.8, 0.0, 0.2))
        rows = [line.split("\t") for line in result.sheet.read_text().splitlines()[1:]]
        sides.append({row[3]: row[2] for row in rows if row[0] == "ape"})
    assert sides[0] == sides[1] != sides[2]
    assert sum(side == "test" for side in sides[0].values()) == 6


def test_regions_cut_each_long_record(tmp_path: Path) -> None:
    ids = random_ids(20_000, 0)
    ids[100:200] = 4
    write(tmp_path, {"ape": {"chr1": ids}, "bat": {"x:y": random_ids(10_001, 1)}})
    result = split(tmp_path, by="region", fractions=(0.7, 0.1, 0.2))
    rows = [line.split("\t") for line in result.sheet.read_text().splitlines()[1:]]
    assert [row[2:4] for row in rows[:3]] == [
        ["train", "chr1:1-14000"],
        ["val", "chr1:14001-16000"],
        ["test", "chr1:16001-20000"],
    ]
    store = build_store(load_samples(result.sheet), tmp_path / "c", n_policy="keep")
    parts = [store.ids(r) for r in store.records if r.label_id == 0]
    np.testing.assert_array_equal(np.concatenate(parts), ids)
    assert sum(r.length for r in store.records if r.label_id == 1) == 10_001


def test_too_few_records_and_wrong_numbers_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"ape": {"a": random_ids(900, 0)}, "bat": {"b": random_ids(900, 1)}})
    with pytest.raises(DataError, match=r"label 'ape' has 1 records.*by region"):
        split(tmp_path)
    assert not (tmp_path / "out.tsv").exists()
    for options in ({"fractions": (0.5, 0.1, 0.1)}, {"fractions": (0, 0.5, 0.5)}, {"by": "base"}):
        with pytest.raises(UsageError):
            split(tmp_path, **options)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 1000), st.integers(31, 1500), st.booleans())
def test_containment_counts_shared_kmers(seed, start, length, flip) -> None:
    ids = random_ids(2000, seed)
    part = ids[start : start + min(length, 2000 - start)]
    other = reverse_complement(part) if flip else part
    assert containment(ids, other) == containment(other, ids) == 1
    assert containment(part[:30], ids) == 0
    half = np.concatenate([ids[:1000], random_ids(1000, seed + 1)])
    assert containment(ids, half) == pytest.approx(970 / 1970, abs=0.01)


def test_all_pairs_above_the_threshold_are_found_also_from_sketches(monkeypatch) -> None:
    import mambabio.containment as module

    rng = np.random.default_rng(0)
    sequences = []
    for _ in range(6):
        base = rng.integers(0, 4, 10_000).astype(np.uint8)
        other = base.copy()
        hit = rng.random(len(base)) < rng.choice([0.0005, 0.002, 0.004])
        other[hit] = (other[hit] + 1) % 4
        sequences += [base, other]
    exact = {
        (i, j): containment(sequences[i], sequences[j]) for i in range(12) for j in range(i + 1, 12)
    }
    expected = {pair for pair, value in exact.items() if value > 0.9}
    assert 0 < len(expected) < 6
    monkeypatch.setattr(module, "_SKETCH_TOTAL", 12_000)  # one 31-mer in 10
    found = list(contained_pairs([lambda s=s: s for s in sequences], [10_000] * 12))
    assert {(one, other) for one, other, _ in found} == expected
    assert all(exact[one, other] == value for one, other, value in found)
    few = kmer_hashes(sequences[0], 10)
    assert 0.8 < len(few) * 10 / len(kmer_hashes(sequences[0])) < 1.2
