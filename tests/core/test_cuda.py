"""The same model on a GPU: same outputs, same streaming property, same rules for dtypes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from helpers import assert_close
from mambacore import (
    LanguageModel,
    ModelConfig,
    Pooling,
    from_pretrained,
    generate,
    save_pretrained,
    state,
)

pytestmark = pytest.mark.gpu
LAYERS = ("mamba", "s4d", "attention", "mamba")


def _model(**options: object) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=16, d_model=64, n_layer=4, layers=LAYERS, **options)
    model = LanguageModel(config)
    torch.nn.init.normal_(model.embedding.weight)
    return model


def _packed(rows: int, length: int) -> torch.Tensor:
    return torch.arange(length).repeat(rows, 1) // torch.tensor([[37], [250]])[:rows]


@pytest.mark.parametrize("segments", [False, True])
def test_a_gpu_computes_what_the_cpu_does(segments: bool) -> None:
    model, tokens = _model(), torch.randint(0, 16, (2, 300))
    ids = _packed(2, 300) if segments else None
    twin = copy.deepcopy(model).cuda()
    expected, _ = model(tokens, segment_ids=ids)
    got, _ = twin(tokens.cuda(), segment_ids=None if ids is None else ids.cuda())
    assert_close(got.cpu(), expected, 1e-4, "logits")
    expected.square().mean().backward()
    got.square().mean().backward()
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert_close(b.grad.cpu(), a.grad, 2e-3, name)


@pytest.mark.parametrize("segments", [False, True])
def test_whole_equals_chunks_and_steps(segments: bool) -> None:
    model, tokens = _model().cuda(), torch.randint(0, 16, (2, 300), device="cuda")
    ids = _packed(2, 300).cuda() if segments else None
    with torch.no_grad():
        whole, _ = model(tokens, segment_ids=ids)
        carried, outputs = None, []
        for part in torch.arange(300).split([120, 100, *[1] * 30, 50]):
            part = part.cuda()
            these = None if ids is None else ids[:, part]
            y, carried = model(tokens[:, part], carried, segment_ids=these)
            outputs.append(y)
    assert_close(torch.cat(outputs, dim=1), whole, 1e-4)
    assert {t.device.type for t in state.tensors(carried)} == {"cuda"}


def test_bfloat16_and_autocast_follow_float32() -> None:
    model, tokens = _model().cuda(), torch.randint(0, 16, (2, 200), device="cuda")
    with torch.no_grad():
        expected, _ = model(tokens)
        half, carried = copy.deepcopy(model).bfloat16()(tokens)
    with torch.autocast("cuda", torch.bfloat16):
        cast, _ = model(tokens)
        cast.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    for got in (half, cast):
        assert (got - expected).norm() < 0.03 * expected.norm()
    assert carried is not None
    assert carried[0].ssm.dtype == torch.float32


def test_loading_generating_and_pooling(tmp_path: Path) -> None:
    model = _model()
    save_pretrained(model, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model", device="cuda")
    prompt = torch.tensor([[1, 2, 3]])
    greedy = generate(loaded, prompt.cuda(), 20, temperature=0).tokens
    assert torch.equal(greedy.cpu(), generate(model, prompt, 20, temperature=0).tokens)
    once, again = (generate(loaded, prompt.cuda(), 20, seed=3).tokens for _ in range(2))
    assert torch.equal(once, again)
    hidden, lengths = torch.randn(2, 9, 4), torch.tensor([9, 4])
    for kind in ("mean", "last", "max"):
        pool = Pooling(kind)
        assert_close(pool(hidden.cuda(), lengths).cpu(), pool(hidden, lengths), 1e-6)
