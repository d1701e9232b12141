"""The penalty on delta: it is of the deltas that the scan is given, and lowers them."""

from __future__ import annotations

import pytest
import torch

from mambacore import LanguageModel, ModelConfig
from mambacore.mixers import mamba
from mambapipelines.recipes.quiet import FLOOR, penalty, watched


def _model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(vocab_size=8, d_model=16, n_layer=2))


def test_it_is_the_mean_of_what_the_scan_is_given(monkeypatch) -> None:
    given = []

    def noted(u, delta, A, B, C, D, z, bias, **options):
        given.append((delta + bias - FLOOR).mean())
        return scan(u, delta, A, B, C, D, z, bias, **options)

    scan = mamba.selective_scan
    monkeypatch.setattr(mamba, "selective_scan", noted)
    model = _model()
    with watched(model) as seen:
        model(torch.randint(8, (3, 20)))
    assert len(seen) == len(given) == 2
    assert penalty(seen).item() == pytest.approx(torch.stack(given).mean().item(), rel=1e-5)
    with watched(model) as later:
        pass
    model(torch.randint(8, (1, 4)))
    assert not later, "hooks are gone afterwards"


def test_it_pulls_on_deltas_of_any_size_and_stops_at_the_floor() -> None:
    model = _model()
    mixers = [m for m in model.modules() if isinstance(m, mamba.MambaMixer)]
    for level in (-2.0, -20.0, FLOOR - 5):
        for mixer in mixers:
            torch.nn.init.constant_(mixer.dt_proj.bias, level)
            torch.nn.init.zeros_(mixer.dt_proj.weight)
        model.zero_grad()
        with watched(model) as seen:
            model(torch.randint(8, (3, 20)))
        value = penalty(seen)
        assert value.item() == pytest.approx(max(level - FLOOR, 0.0))
        value.backward()
        pull = mixers[0].dt_proj.bias.grad
        assert pull is not None
        torch.testing.assert_close(pull, torch.full_like(pull, 0.5 / 32 if level > FLOOR else 0.0))


def test_without_selective_layers_there_is_none() -> None:
    model = LanguageModel(ModelConfig(vocab_size=8, d_model=16, n_layer=1, mixer="s4d"))
    with watched(model) as seen:
        model(torch.randint(8, (1, 5)))
    assert penalty(seen) == 0.0
