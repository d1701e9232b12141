"""The waveform model: causal, streamable at any cut, conditioned, saved and read whole."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import assert_close
from mambaaudio import WaveformConfig, WaveformModel
from mambaaudio.model_files import read_model_config
from mambacore import state as states
from mambacore.errors import DataError, UsageError
from mambacore.multiscale import MultiScaleConfig


def small_config(mixers: tuple[str, ...] = ("mamba",), **settings) -> WaveformConfig:
    backbone = MultiScaleConfig(d_model=8, pools=(2, 2), n_layer=1, mixers=mixers)
    return WaveformConfig(**({"rate": 8000, "backbone": backbone} | settings))


def small_model(mixers: tuple[str, ...] = ("mamba",), **settings) -> WaveformModel:
    torch.manual_seed(1)
    model = WaveformModel(small_config(mixers, **settings)).double().eval()
    # Initialisation makes the slow levels' share small; larger weights make a leak visible.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pool" in name and parameter.dim() == 2:
                parameter.normal_(std=0.5)
    return model


@pytest.mark.parametrize("code", ["mulaw8", "pcm16"])
@settings(max_examples=5, deadline=None)
@given(cuts=st.lists(st.integers(1, 20), max_size=5), seed=st.integers(0, 99))
def test_whole_is_chunks_is_steps(code: str, cuts: list[int], seed: int) -> None:
    model = small_model(("mamba", "s4d", "mamba"), code=code, labels=("a", "b"), end_event=True)
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(257, (2, 21), generator=random)
    label = torch.tensor([2, 0])
    with torch.no_grad():
        whole, _ = model(model.shift(codes), label=label)
        for edges in ([0, *sorted(set(cuts)), 21], list(range(22))):
            state, before, pieces = None, None, []
            for start, end in itertools.pairwise(edges):
                piece = codes[:, start:end]
                given_label = label if state is None else None
                logits, state = model(model.shift(piece, before), state, label=given_label)
                before = piece[:, -1]
                pieces.append(logits)
            assert_close(torch.cat(pieces, 1), whole, 1e-9, "chunks")
    assert whole.shape == (2, 21, 257)


def test_logits_hear_the_past_and_nothing_else() -> None:
    model = small_model()
    codes = torch.randint(256, (1, 17))
    with torch.no_grad():
        before, _ = model(model.shift(codes))
        for t in (0, 3, 8, 15):
            changed = codes.clone()
            changed[0, t] = (codes[0, t] + 77) % 256
            after, _ = model(model.shift(changed))
            difference = (after - before)[0].abs().amax(-1)
            # logits[t] scores code t, so it must not have seen it; the next must.
            assert difference[: t + 1].max() == 0
            assert difference[t + 1 :].min() > 0


def test_a_step_updates_only_the_levels_that_are_due() -> None:
    model = small_model()
    calls: dict[int, list[int]] = {0: [], 1: [], 2: []}
    level, number = model.backbone.level, 0
    for depth in range(3):
        level.up.register_forward_hook(lambda *_, depth=depth: calls[depth].append(number))
        level = level.below if depth < 2 else level
    state = None
    with torch.no_grad():
        for number in range(8):
            before = None if state is None else state.backbone.below
            _, state = model(torch.tensor([[number]]), state)
            if number % 2 == 0:
                assert state.backbone.below is before
    assert calls == {0: list(range(8)), 1: [1, 3, 5, 7], 2: [3, 7]}


def test_conditions_change_the_scores_row_by_row_and_stay_in_the_state() -> None:
    model = small_model(labels=("a", "b"), speakers=("x",))
    codes = torch.randint(256, (1, 9)).expand(3, -1)
    with torch.no_grad():
        logits, state = model(model.shift(codes), label=torch.tensor([0, 1, 2]))
        alone, _ = model(model.shift(codes[:1]))
        assert_close(logits[:1], alone, 1e-12, "condition 0 is no condition")
        assert (logits[0] - logits[1]).abs().max() > 1e-3
        assert (logits[1] - logits[2]).abs().max() > 1e-3
        kept, _ = model(codes[:1, :1], states.select(state, [2]))
        again, _ = model(codes[:1, :1], states.select(state, [2]), label=torch.tensor([2]))
        other, _ = model(codes[:1, :1], states.select(state, [2]), speaker=torch.tensor([1]))
    assert torch.equal(kept[0], again[0])
    assert not torch.equal(other, again)


def test_saved_and_read_again_it_is_the_same(tmp_path: Path) -> None:
    model = small_model(labels=("a",), end_event=True, gain=0.5, trained_on={"files": 3}).float()
    model.save_pretrained(tmp_path / "run" / "model")
    before = torch.get_rng_state()
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        again = WaveformModel.from_pretrained(folder)
        assert again.config == model.config
        assert not again.training
        codes = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(again(codes)[0], model(codes)[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert read_model_config(tmp_path / "run") == model.config


def test_bad_folders_and_arguments_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        WaveformModel.from_pretrained(tmp_path / "gone")
    model = small_model(labels=("a", "b"))
    model.save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "colour": 1}))
    with pytest.raises(DataError, match=r"config.json.*'colour'"):
        WaveformModel.from_pretrained(tmp_path / "m")
    path.write_text(json.dumps({**values, "labels": ["a"]}))
    with pytest.raises(DataError, match="label_embedding"):
        WaveformModel.from_pretrained(tmp_path / "m")
    with pytest.raises(UsageError, match="knows a, b"):
        model.config.label_id("c")
    with pytest.raises(UsageError, match="without speakers"):
        model.config.speaker_id("c")
    with pytest.raises(UsageError, match="0 to 256"):
        model(torch.tensor([[257]]))
    with pytest.raises(UsageError, match="one integer a row"):
        model(torch.tensor([[1]]), label=torch.tensor([1, 1]))
    with torch.no_grad(), pytest.raises(UsageError, match="of 1 rows"):
        model(torch.tensor([[1], [2]]), model(torch.tensor([[1]]))[1])
    with pytest.raises(UsageError, match="multiple"):
        WaveformConfig(8000, code="pcm16", backbone=MultiScaleConfig(pools=(3,)))
    with pytest.raises(UsageError, match="rate"):
        WaveformConfig(0)
