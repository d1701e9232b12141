"""Segments with the state handed over: full back-propagation when the gradient reaches all."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from bio_cli import SMALL, run_cli
from test_resume import assert_same, outcome

from helpers import assert_close
from mambabio.language import LanguageWindows
from mambacore import LanguageModel, ModelConfig, chunked_cross_entropy
from mambacore import state as states
from mambacore.errors import UsageError
from mambapipelines.state_carry import carried_loss

SEGMENTS, LENGTH = 4, 24
CONFIG = ModelConfig(
    vocab_size=5,
    d_model=8,
    n_layer=3,
    layers=("mamba", "s4d", "attention"),
    # The definition itself: small sizes, and nothing to compile in float64.
    mixer_options={"mamba": {"backend": "reference", "d_state": 4}},
)


@pytest.fixture(params=[0.0, 0.4], ids=["plain", "dropout"])
def problem(request):
    """A model in float64 and a function of (segment, state)."""
    torch.manual_seed(0)
    model = LanguageModel(dataclasses.replace(CONFIG, dropout=request.param)).double().train()
    tokens = torch.randint(5, (2, LENGTH + 1))

    def step(number, state):
        # Segments of unequal length.
        cuts = [0, 5, 11, 18, LENGTH]
        part = slice(cuts[number], cuts[number + 1])
        hidden, state = model.hidden(tokens[:, :-1][:, part], state)
        loss = chunked_cross_entropy(hidden, model.head_weight, tokens[:, 1:][:, part])
        return loss.total, state

    return model, step, tokens


def gradients(model, compute):
    torch.manual_seed(7)
    model.zero_grad()
    loss = compute()
    (loss * 0.5).backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def assert_equal_gradients(got, expected):
    assert_close(got[0], expected[0], 1e-12)
    for name, gradient in expected[1].items():
        assert_close(got[1][name], gradient, 1e-10, name)


def truncated_by_definition(step, reach):
    """Each segment's loss with the state detached `reach` segments before, added up."""
    total = 0.0
    for number in range(SEGMENTS):
        torch.manual_seed(7)
        state = None
        for before in range(number + 1):
            loss, after = step(before, state)
            state = states.detach(after) if before < number - reach + 1 else after
        total = total + loss
    return total


@pytest.mark.parametrize("reach", [1, 2, 3, 4, 9])
def test_gradients_reach_as_far_as_asked(problem, reach):
    model, step, _ = problem
    parameters = list(model.parameters())
    got = gradients(model, lambda: carried_loss(step, SEGMENTS, reach, parameters))
    after = torch.rand(1)
    expected = gradients(model, lambda: truncated_by_definition(step, reach))
    assert_equal_gradients(got, expected)
    assert torch.equal(after, torch.rand(1)), "random numbers go on as if nothing was done twice"


# One pass draws the random numbers of dropout in another order.
@pytest.mark.parametrize("problem", [0.0], ids=["plain"], indirect=True)
def test_reaching_all_is_full_back_propagation(problem):
    model, step, tokens = problem

    def whole():
        hidden, _ = model.hidden(tokens[:, :-1])
        return chunked_cross_entropy(hidden, model.head_weight, tokens[:, 1:]).total

    got = gradients(model, lambda: carried_loss(step, SEGMENTS, SEGMENTS, list(model.parameters())))
    assert_equal_gradients(got, gradients(model, whole))
    cut = gradients(model, lambda: carried_loss(step, SEGMENTS, 1, list(model.parameters())))
    assert any(not torch.allclose(cut[1][name], got[1][name], rtol=1e-3) for name in got[1]), (
        "truncation changes the gradient"
    )


@pytest.mark.parametrize(("reach", "most"), [(1, 1), (2, 2), (SEGMENTS, 1)])
def test_memory_is_that_of_the_segments_in_reach(problem, reach, most):
    """Of the tensors that a backward pass needs, only those of `most` segments live at a time."""
    model, step, _ = problem
    alive: dict[int, int] = {}
    peak = []

    class Kept:
        def __init__(self, number, tensor):
            # Detached: a node whose own output is kept here would keep itself.
            self.tensor = tensor.detach()
            alive[id(self)] = number

        def __del__(self):
            alive.pop(id(self))

    def watched(number, state):
        def pack(tensor):
            return Kept(number, tensor)

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            result = step(number, state)
        peak.append(len(set(alive.values())))
        return result

    gradients(model, lambda: carried_loss(watched, SEGMENTS, reach, list(model.parameters())))
    assert max(peak) == most


def test_without_gradients_and_refusals(problem):
    model, step, _ = problem
    torch.manual_seed(7)
    with torch.no_grad():
        alone = carried_loss(step, SEGMENTS, 2, list(model.parameters()))
    torch.manual_seed(7)
    assert_close(alone, carried_loss(step, SEGMENTS, 2, list(model.parameters())).detach(), 1e-12)
    with pytest.raises(UsageError, match="at least 1"):
        carried_loss(step, 3, 0, [])


OPTIONS = (*SMALL, "--trainer.segments", "4", "--trainer.carry_gradient")


def weights(run: Path) -> dict:
    return outcome(run)[0]["state_dict"]


def test_pretrain_in_segments(tmp_path, sheet, capsys, monkeypatch):
    """Reaching all is the training without segments; truncated it is another; both resume."""
    base = ["pretrain", "--data.samples", sheet, "--run"]
    assert run_cli(capsys, *base, tmp_path / "whole", *SMALL)[0] == 0
    assert run_cli(capsys, *base, tmp_path / "four", *OPTIONS, "4")[0] == 0
    assert run_cli(capsys, *base, tmp_path / "two", *OPTIONS, "2")[0] == 0
    whole, four, two = (weights(tmp_path / name) for name in ("whole", "four", "two"))
    for name, value in whole.items():
        assert_close(four[name], value, 2e-3, name)
    assert any(not torch.equal(two[name], four[name]) for name in four)

    real = LanguageWindows.batch

    def interrupting(self, step, *rest):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, step, *rest)

    monkeypatch.setattr(LanguageWindows, "batch", interrupting)
    assert run_cli(capsys, *base, tmp_path / "cut", *OPTIONS, "2")[0] == 143
    monkeypatch.undo()
    assert run_cli(capsys, "pretrain", "--resume", tmp_path / "cut")[0] == 0
    assert_same(outcome(tmp_path / "cut"), outcome(tmp_path / "two"))


def test_half_precision_with_a_scaler_is_refused(tmp_path, sheet, capsys):
    code, _, err = run_cli(
        capsys, "pretrain", "--data.samples", sheet, "--run", tmp_path / "run", *OPTIONS, "2",
        "--trainer.precision", "16-mixed",
    )  # fmt: skip
    assert code == 2
    assert "16-mixed" in err
