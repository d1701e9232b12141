"""A step that is recorded once and replayed computes what the step itself does."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from mambaaudio.model import WaveformModel
from mambaaudio.model_config import WaveformConfig
from mambacore.errors import UsageError
from mambacore.multiscale import MultiScaleConfig
from mambapipelines.audio.module import WaveformLoss
from mambapipelines.options import TrainerOptions
from mambapipelines.replay import ReplayedLoss


class Squares(nn.Module):
    """Mean of squares, and its root; `wait` looks at a value, which cannot be recorded."""

    def __init__(self, model: nn.Module, wait: bool = False, rate: float = 0.5) -> None:
        super().__init__()
        self.model, self.wait, self.rate = model, wait, rate

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x: any shape that the model takes."""
        loss = functional.dropout(self.model(x), self.rate).square().mean()
        if self.wait:
            loss = loss * (1 if float(loss.detach()) >= 0 else -1)
        return loss, loss.detach().sqrt()


def test_on_a_cpu_it_is_the_loss_itself() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    replayed = ReplayedLoss(partial(Squares, model))
    replayed.enabled = True
    torch.manual_seed(1)
    loss, root = replayed(x)
    loss.backward()
    torch.manual_seed(1)
    expected, _ = Squares(model)(x)
    assert loss.item() == expected.item()
    assert root.item() == pytest.approx(loss.item() ** 0.5)
    assert model.weight.grad is not None
    assert model.weight.grad.any()
    assert replayed.shapes == 0


def test_a_split_window_is_refused() -> None:
    with pytest.raises(UsageError, match="parallel is 2; it must be 1 with --trainer.cuda_graphs"):
        dataclasses.replace(TrainerOptions(), cuda_graphs=True, sequence_parallel=2)


def _batch(rows: int, length: int) -> tuple[torch.Tensor, ...]:
    codes = torch.randint(257, (rows, length), dtype=torch.int16, device="cuda")
    mask = torch.rand(rows, length, device="cuda") < 0.9
    label = torch.randint(3, (rows,), device="cuda")
    return codes, mask, mask & (codes < 200), label, torch.zeros_like(label)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mixers", ["mamba", "s4d"])
def test_replays_are_the_step(mixers: str, precision: torch.dtype) -> None:
    """Shapes by turns: none spoils another's memory; parameters may change in between."""
    backbone = MultiScaleConfig(d_model=32, n_layer=1, mixers=(mixers,), pools=(2,))
    config = WaveformConfig(
        8000, backbone=backbone, labels=("a", "b"), speakers=("s",), end_event=True
    )
    torch.manual_seed(0)
    model = WaveformModel(config).cuda()
    plain, replayed = WaveformLoss(model).train(), ReplayedLoss(partial(WaveformLoss, model))
    replayed.enabled = True
    for turn in range(3):
        for shape in ((3, 128), (2, 500), (5, 64)):
            batch = _batch(*shape)
            found = []
            for call in (plain, replayed):
                model.zero_grad(set_to_none=True)
                with torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16):
                    loss, bits = call(*batch)
                loss.backward()
                gradients = {
                    n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
                }
                found.append((loss.detach(), bits, gradients))
            torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * (turn + 1))
    assert replayed.shapes == 3
    replayed.clear()


@pytest.mark.gpu
def test_random_numbers_follow_the_seed() -> None:
    model = nn.Linear(64, 64).cuda()
    replayed = ReplayedLoss(partial(Squares, model))
    replayed.enabled = True
    x, losses = torch.randn(32, 64, device="cuda"), []
    for seed in (1, 2, 1):  # the first of these records
        torch.manual_seed(seed)
        losses.append(replayed(x)[0].item())
    assert losses[0] == losses[2] != losses[1]
    torch.manual_seed(1)
    assert replayed(x)[0].item() != replayed(x)[0].item()


@pytest.mark.gpu
def test_gradients_of_several_calls_add_up() -> None:
    model, x = nn.Linear(64, 64).cuda(), torch.randn(2, 32, 64, device="cuda")
    replayed = ReplayedLoss(partial(Squares, model, rate=0.0))
    expected = [replayed(row)[0] for row in x]
    (2 * expected[0] + expected[1]).backward()
    assert model.weight.grad is not None
    wanted = model.weight.grad.clone()
    replayed.enabled, model.weight.grad = True, None
    for factor, row in zip((2, 1), x, strict=True):
        (factor * replayed(row)[0]).backward()
    torch.testing.assert_close(model.weight.grad, wanted)


@pytest.mark.gpu
def test_what_cannot_be_recorded_is_said() -> None:
    """In a process of its own, which is lost."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        message = pool.apply(_record_a_wait)
    assert "cannot be recorded" in message
    assert "--trainer.cuda_graphs" in message


def _record_a_wait() -> str:
    replayed = ReplayedLoss(partial(Squares, nn.Linear(8, 8).cuda(), wait=True))
    replayed.enabled = True
    with pytest.raises(UsageError) as caught:
        replayed(torch.randn(4, 8, device="cuda"))
    return str(caught.value)
