"""Prepared sequences train as the sheet does; batches are the same over workers and ranks."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from bio_cli import SMALL, make_sheet, run_cli
from test_resume import assert_same, outcome

from mambabio.prepared import open_prepared
from mambapipelines.language.data import LanguageSequences
from mambapipelines.language.options import LanguageData
from mambapipelines.schedule import Pace


@pytest.fixture(scope="module")
def prepared(sheet: Path, tmp_path_factory) -> Path:
    """The sheet's sequences, prepared from a copy that is gone."""
    from mambapipelines.cli import bio

    copy = make_sheet(tmp_path_factory.mktemp("copy"))
    folder = tmp_path_factory.mktemp("prepared") / "made"
    assert bio.main(["prepare", str(copy), "-o", str(folder)]) == 0
    for path in copy.parent.iterdir():
        path.unlink()
    return folder


def test_a_training_on_it_is_that_on_the_sheet(tmp_path, prepared, sheet, capsys):
    for name, samples in (("sheet", sheet), ("prepared", prepared)):
        code, out, err = run_cli(
            capsys, "pretrain", "--data.samples", samples, "--run", tmp_path / name, *SMALL
        )
        assert (code, out) == (0, ""), err
    assert_same(outcome(tmp_path / "prepared"), outcome(tmp_path / "sheet"))


def test_classifiers_are_trained_and_evaluated_on_it(tmp_path, prepared, capsys):
    base = ["fit", "--data.samples", prepared, "--run", tmp_path / "run", *SMALL]
    code, _, err = run_cli(capsys, *base)
    assert code == 2
    assert "--data.n_policy split" in err
    assert run_cli(capsys, *base, "--data.n_policy", "split")[0] == 0
    for verb in (("evaluate",), ("perplexity", "--contexts", "64")):
        model = tmp_path / "run"
        code, out, err = run_cli(capsys, *verb, "--model", model, "--samples", prepared)
        if verb[0] == "evaluate":
            assert code == 0, err
            assert "chance" in out
        else:
            assert (code, "is not a language model" in err) == (1, True)


def batches(store, workers: int, rank: int, world: int, start: int, tokens: int, packing: bool):
    """Three training batches from step `start` on."""
    options = LanguageData(
        samples="x", window=128, first_window=64, tokens=tokens, num_workers=workers,
        packing=packing,
    )  # fmt: skip
    data = LanguageSequences(store, options, seed=3)
    data._place = lambda: (rank, world)
    data.continue_at(start, 1, Pace(10))
    return list(itertools.islice(iter(data.train_dataloader()), 3))


@pytest.mark.parametrize("packing", [False, True])
def test_batches_depend_on_the_step_alone(prepared, packing):
    """Any number of workers and ranks, and any restart, reads the same global batches; what two
    ranks read at a step is disjoint."""
    store = open_prepared(prepared).store
    alone = batches(store, 0, 0, 1, 4, 2048, packing)
    halves = [batches(store, workers, workers - 1, 2, 4, 1024, packing) for workers in (1, 2)]
    for step, whole in enumerate(alone):
        for part in range(2 + packing):
            joined = torch.cat([half[step][part] for half in halves])
            assert torch.equal(whole[part], joined)
    later = batches(store, 2, 0, 1, 5, 2048, packing)
    for got, expected in zip(later, alone[1:], strict=False):
        assert torch.equal(got.tokens, expected.tokens)
    assert not torch.equal(halves[0][0].tokens, halves[1][0].tokens)
