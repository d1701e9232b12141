"""Checkpointing changes what is kept, never what is computed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from allocations import allocated
from torch import Tensor

from helpers import assert_close
from mambacore import Backbone, LanguageModel, ModelConfig, MultiScaleBackbone, MultiScaleConfig
from mambacore import state as states
from mambacore.checkpointing import set_checkpointing
from mambacore.errors import UsageError

LENGTH = 50
KINDS: dict[str, dict[str, Any]] = {
    "mamba": {},
    "mlp, dropout": {"mlp_expand": 2.0, "dropout": 0.3},
    "bfloat16 stream": {"residual_dtype": "bfloat16"},
    "hybrid": {"layers": ("s4d", "attention", "mamba"), "n_layer": 3, "dropout": 0.1},
    "bidirectional": {"mixer": "bidirectional", "residual_dtype": "model"},
}


def build(**options: Any) -> Backbone:
    torch.manual_seed(0)
    return Backbone(ModelConfig(**{"d_model": 8, "n_layer": 2, **options})).train()


def run(model: Backbone, x: Tensor, autocast: bool, **inputs: Any) -> dict[str, Tensor]:
    """Outputs and all gradients, the dropout masks the same in every call."""
    torch.manual_seed(3)
    x = x.clone().requires_grad_()
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, state = model(x, **inputs)
    loss = y.square().sum()
    for tensor in states.tensors(state) if state is not None else ():
        if tensor.is_floating_point() and tensor.requires_grad:
            loss = loss + tensor.square().sum()
    loss.backward()
    assert x.grad is not None
    found = {"y": y.detach(), "x": x.grad}
    return found | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def kept_by_default(model: Backbone) -> None:
    """The fused mixer, which checkpointing asks for, also without: so that bits can be compared."""
    for module in model.modules():
        if hasattr(module, "keeps_input_alone"):
            module.recompute = True


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["selective", "block"])
def test_gradients_are_the_same_bits(mode: str, kind: str, autocast: bool) -> None:
    model, x = build(**KINDS[kind]), torch.randn(2, LENGTH, 8)
    kept_by_default(model)
    expected = run(model, x, autocast)
    set_checkpointing(model, mode)
    got = run(model, x, autocast)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("mode", ["none", "selective", "block"])
def test_pieces_agree_to_rounding_with_state_and_segments(mode: str) -> None:
    model = build(layers=("mamba", "s4d", "mamba"), n_layer=3).double()
    x = torch.randn(2, LENGTH, 8, dtype=torch.float64)
    ids = torch.arange(LENGTH).repeat(2, 1) // torch.tensor([[7], [20]])
    with torch.no_grad():
        _, state = model(torch.randn(2, 9, 8, dtype=torch.float64))
    expected = run(model, x, False, state=state, segment_ids=ids)
    set_checkpointing(model, mode, piece=26)
    got = run(model, x, False, state=state, segment_ids=ids)
    for name, value in expected.items():
        assert_close(got[name], value, 1e-9, name)


def test_a_carried_state_is_differentiated_through() -> None:
    """Truncated back-propagation over two chunks equals the whole, checkpointed or not."""
    model, x = build().double(), torch.randn(1, LENGTH, 8, dtype=torch.float64)
    expected = run(model, x, False)
    set_checkpointing(model, "block")
    model.zero_grad()
    head, state = model(x[:, :20])
    tail, state = model(x[:, 20:], state)
    loss = torch.cat([head, tail], 1).square().sum()
    (loss + sum(t.square().sum() for t in states.tensors(state) if t.requires_grad)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert_close(parameter.grad, expected[name], 1e-9, name)


def test_modes_keep_less_and_less() -> None:
    model, x = build(d_model=32, mlp_expand=1.0), torch.randn(1, 512, 32)
    model(x)[0].sum().backward()
    left = {}
    for mode in ("none", "selective", "block"):
        set_checkpointing(model, mode)
        left[mode] = allocated(lambda: model(x)).left
    stream = x.numel() * x.element_size()
    # The streams of the three later branches (the first is x) and of the final norm; the output.
    assert 5 * stream <= left["block"] < 5.6 * stream
    assert left["block"] < left["selective"] < 0.5 * left["none"]


def test_works_in_a_multiscale_backbone() -> None:
    torch.manual_seed(0)
    config = MultiScaleConfig(d_model=8, pools=(2,), n_layer=1, mixers=("mamba",))
    model, x = MultiScaleBackbone(config), torch.randn(1, 20, 8)
    twin = copy.deepcopy(model)
    set_checkpointing(twin, "block", piece=6)
    probe = torch.randn_like(x)  # the sum of squares of a normalised output has no gradient
    (model(x)[0] * probe).sum().backward()
    (twin(x)[0] * probe).sum().backward()
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert_close(b.grad, a.grad, 1e-4, name)


def test_compiled_whole() -> None:
    """No graph break, the same gradients."""
    config = ModelConfig(vocab_size=16, d_model=8, n_layer=1)
    model, tokens = LanguageModel(config), torch.randint(16, (1, 20))
    model(tokens)[0].square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for mode in ("selective", "block"):
        set_checkpointing(model, mode, piece=8)
        model.zero_grad()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        compiled(tokens)[0].square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert_close(parameter.grad, expected[name], 1e-5, name)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(UsageError, match="'all' is not one of none, selective, block"):
        set_checkpointing(build(), "all")
    with pytest.raises(UsageError, match="at least 1 position"):
        set_checkpointing(build(), "none", piece=0)


@pytest.mark.gpu
@pytest.mark.parametrize("residual", ["float32", "bfloat16"])
def test_modes_and_pieces_agree_on_a_gpu(residual: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(d_model=128, n_layer=3, residual_dtype=residual, dropout=0.1)
    model = Backbone(config).cuda().train()
    x = torch.randn(1, 2**14, 128, device="cuda")
    # The mean square of what a norm returns would hardly have a gradient.
    weight = torch.randn_like(x) / 2**7

    def gradients(mode: str, piece: int | None) -> dict[str, Tensor]:
        set_checkpointing(model, mode, piece=piece)
        model.zero_grad()
        torch.manual_seed(3)
        with torch.autocast("cuda", torch.bfloat16):
            y, _ = model(x)
        (y.float() * weight).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients("none", None)
    for name, value in gradients("none", None).items():
        assert torch.equal(value, expected[name]), name
    for mode in ("selective", "block"):
        for name, value in gradients(mode, None).items():
            assert_close(value, expected[name], 1e-2, f"{mode} {name}")
    for block in model.blocks:
        block.dropout = 0.0  # pieces draw their masks one by one
    whole = gradients("none", None)
    for name, value in gradients("selective", 2**12).items():
        assert_close(value, whole[name], 2e-2, name)
