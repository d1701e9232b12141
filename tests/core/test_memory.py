"""The memory formula against an allocator that counts, and against what was measured on an H200."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from allocations import allocated

from mambacore import Backbone, ModelConfig
from mambacore.checkpointing import set_checkpointing
from mambacore.errors import UsageError
from mambacore.heads import Pooling
from mambacore.memory import (
    PIECE,
    checkpointing_for,
    longest_that_fits,
    memory_of_training,
    parameter_count,
    seconds_per_token,
)

GIB = 2**30
LENGTH, WIDTH = 2048, 64
FUSED = {"mamba": {"recompute": True}}
BOTH = {"bidirectional": {"inner_options": {"recompute": True}}}


def measured(
    config: ModelConfig, mode: str, piece: int | None, autocast: bool, length: int = LENGTH
) -> tuple[int, int, int]:
    """Bytes alive after a forward pass, the most in it, and what the backward pass adds."""
    model, embedding = Backbone(config), torch.nn.Embedding(16, config.d_model)
    set_checkpointing(model, mode, piece=piece)
    tokens = torch.randint(0, 16, (1, length), dtype=torch.uint8)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model(embedding(tokens.long()))[0]

    forward().sum().backward()  # gradients exist from now on
    y, left, most = allocated(forward)
    left -= y.numel() * y.element_size()
    loss = y.float().mean()
    del y
    return left, most, allocated(loss.backward).peak


@pytest.mark.parametrize(
    ("mode", "piece"),
    [("none", None), ("selective", None), ("selective", LENGTH // 2), ("block", LENGTH // 2)],
)
@pytest.mark.parametrize(
    ("autocast", "options"),
    [
        (True, {"residual_dtype": "bfloat16", "mixer_options": FUSED}),
        (False, {"mixer_options": FUSED}),
        (True, {"mlp_expand": 2.0, "mixer_options": FUSED}),
        (False, {"mixer": "bidirectional", "mixer_options": BOTH}),
    ],
)
def test_formula_is_what_is_allocated(
    options: dict[str, Any], autocast: bool, piece: int | None, mode: str
) -> None:
    config = ModelConfig(d_model=WIDTH, n_layer=2, **options)
    left, _, peak = measured(config, mode, piece, autocast)
    predicted = memory_of_training(
        config, 1, LENGTH, checkpointing=mode, piece=piece, autocast=autocast, backend="cpu"
    )
    assert left == pytest.approx(predicted.activations, rel=0.1)
    assert left + peak == pytest.approx(predicted.activations + predicted.block, rel=0.1)


@pytest.mark.parametrize(
    ("mode", "stream", "autocast"),
    [("selective", "bfloat16", True), ("block", "float32", True), ("block", "float32", False)],
)
def test_with_many_pieces_joining_them_is_the_largest_moment(
    mode: str, stream: str, autocast: bool
) -> None:
    """As at 2^22 positions in pieces of 2^18: a piece's backward pass takes little there."""
    length, piece = 16 * LENGTH // 2, LENGTH // 2
    config = ModelConfig(d_model=WIDTH, n_layer=2, residual_dtype=stream, mixer_options=FUSED)
    left, most, peak = measured(config, mode, piece, autocast, length)
    need = memory_of_training(
        config, 1, length, checkpointing=mode, piece=piece, autocast=autocast, backend="cpu"
    )
    assert most == pytest.approx(need.activations + need.forward, rel=0.05)
    assert max(most, left + peak) == pytest.approx(
        need.activations + max(need.forward, need.block), rel=0.05
    )
    assert need.forward > need.block


def test_a_mean_makes_a_float64_copy() -> None:
    hidden = torch.randn(1, LENGTH, WIDTH, dtype=torch.bfloat16)
    need = memory_of_training(ModelConfig(d_model=WIDTH, n_layer=1), 1, LENGTH)
    beside = allocated(lambda: Pooling("mean")(hidden)).peak
    assert hidden.numel() * 2 + beside == pytest.approx(need.loss, rel=0.02)


@pytest.mark.parametrize(
    ("d_model", "n_layer", "batch", "length", "gib"),
    [
        (256, 8, 1, 2**20, 24.5),
        (128, 8, 1, 2**20, 12.5),
        (256, 8, 64, 2**14, 24.5),
        (128, 6, 16, 2**17, 21.3),
    ],
)
def test_formula_gives_what_was_measured_on_an_h200(
    d_model: int, n_layer: int, batch: int, length: int, gib: float
) -> None:
    """Peaks of `kernels/bench/model_gpu.py` (kernels/README.md), fp32 stream, bf16 autocast."""
    config = ModelConfig(vocab_size=16, d_model=d_model, n_layer=n_layer)
    total = memory_of_training(config, batch, length, head="logits").total
    assert total / GIB == pytest.approx(gib, rel=0.02)


@pytest.mark.parametrize(
    ("length", "stream", "mode", "gib"),
    [
        (2**20, "float32", "none", 24.5),
        (2**20, "float32", "selective", 13.4),
        (2**20, "float32", "block", 13.0),
        (2**20, "bfloat16", "none", 19.5),
        (2**20, "bfloat16", "selective", 8.6),
        (2**20, "bfloat16", "block", 8.0),
        (2**22, "bfloat16", "selective", 32.4),
    ],
)
def test_formula_gives_what_fit_needed_on_an_h200(
    length: int, stream: str, mode: str, gib: float
) -> None:
    """Peaks of `pipelines/bench/fit_step.py` (pipelines/README.md), bf16 autocast."""
    config = ModelConfig(d_model=256, n_layer=8, residual_dtype=stream)
    piece = None if mode == "none" else PIECE
    total = memory_of_training(config, 1, length, checkpointing=mode, piece=piece).total
    assert total / GIB == pytest.approx(gib, rel=0.02)


def test_parameters_are_counted() -> None:
    config = ModelConfig(vocab_size=16, d_model=32, n_layer=2, mlp_expand=1.0)
    expected = sum(p.numel() for p in Backbone(config).parameters()) + 16 * 32
    assert parameter_count(config) == expected
    memory = memory_of_training(config, 1, 100)
    assert memory.parameters == memory.gradients == memory.optimizer // 2 == 4 * expected
    beside = memory.activations + max(memory.block, memory.forward, memory.loss)
    assert memory.total == 16 * expected + beside


def test_a_budget_chooses_what_fits() -> None:
    config = ModelConfig(d_model=256, n_layer=8, residual_dtype="bfloat16")
    totals = []
    for budget in (30, 9, 8.2):
        mode, piece = checkpointing_for(config, 1, 2**20, int(budget * GIB))
        need = memory_of_training(config, 1, 2**20, checkpointing=mode, piece=piece)
        assert need.total <= budget * GIB
        totals.append((mode, piece))
    assert totals == [("none", None), ("selective", PIECE), ("block", PIECE)]
    assert checkpointing_for(config, 1, 2**20, GIB) == ("block", PIECE)  # the smallest there is


def test_the_longest_that_fits_fits_and_no_longer_does() -> None:
    config = ModelConfig(d_model=256, n_layer=8, residual_dtype="bfloat16")
    settings = {"checkpointing": "selective", "piece": PIECE}
    longest = longest_that_fits(config, 1, 139 * GIB, **settings)
    assert longest >= 2**22
    assert memory_of_training(config, 1, longest, **settings).total <= 139 * GIB
    assert memory_of_training(config, 1, longest + 1024, **settings).total > 139 * GIB
    assert longest_that_fits(config, 1, 1024) == 0


def test_time_scales_with_layers_and_channels() -> None:
    small, large = ModelConfig(d_model=128, n_layer=4), ModelConfig(d_model=256, n_layer=8)
    assert seconds_per_token(large) == pytest.approx(4 * seconds_per_token(small))
    assert seconds_per_token(large, throughput=1e6, measured=small) == pytest.approx(4e-6)
    assert seconds_per_token(small, checkpointing="block") > seconds_per_token(small)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(UsageError, match="no memory formula for the mixer 's4d'"):
        memory_of_training(ModelConfig(mixer="s4d"), 1, 10)
    with pytest.raises(UsageError, match="'most' is not one of"):
        memory_of_training(ModelConfig(), 1, 10, checkpointing="most")
    with pytest.raises(UsageError, match="head 'tail' is not one of"):
        memory_of_training(ModelConfig(), 1, 10, head="tail")


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["none", "selective", "block"])
@pytest.mark.parametrize("piece", [PIECE, PIECE >> 4])
def test_formula_is_what_a_gpu_needs(piece: int, mode: str) -> None:
    """A step of a classifier; with the small pieces, the forward pass is the largest moment."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    length, config = 1 << 18, ModelConfig(d_model=256, n_layer=4, residual_dtype="bfloat16")
    model, embedding = Backbone(config).cuda(), torch.nn.Embedding(16, config.d_model).cuda()
    pool, parameters = Pooling("mean"), [*model.parameters(), *embedding.parameters()]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    set_checkpointing(model, mode, piece=None if mode == "none" else piece)
    tokens = torch.randint(0, 16, (1, length), dtype=torch.uint8, device="cuda")
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            hidden = model(embedding(tokens.long()))[0]
            loss = pool(hidden).sum()
        del hidden
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    peak = torch.cuda.max_memory_allocated() - before
    need = memory_of_training(
        config, 1, length, checkpointing=mode, piece=None if mode == "none" else piece
    )
    assert peak == pytest.approx(need.total, rel=0.1)
    if mode != "none" and piece < PIECE:
        assert need.forward > need.block
