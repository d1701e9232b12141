"""Bad steps are skipped and counted; what ends a training is said in one message."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mambacore import Backbone, ModelConfig
from mambacore.errors import DataError, UsageError
from mambapipelines import checkpoints
from mambapipelines.guards import explain_loading
from mambapipelines.memory_plan import MemoryPlan, plan_memory
from mambapipelines.metrics_file import read_rows
from mambapipelines.options import TrainerOptions
from mambapipelines.schedule import Stage

sys.path.insert(0, str(Path(__file__).parent))
from toy import OPTIMIZER, STEPS, TRAINER, Batch, MakeBatch, ToyData, ToyModule, run_toy

ONE = dataclasses.replace(TRAINER, accumulate_grad_batches=1, log_every_n_steps=1)


class Poisoned(ToyModule):
    """Gives no finite loss at some batches; notes the parameters and AdamW's state of each step."""

    def __init__(self, bad: set[int], value: float = float("nan"), fused: bool = False) -> None:
        super().__init__()
        self.bad, self.value, self.fused = bad, value, fused
        self.seen: list[list[Tensor]] = []

    def training_step(self, batch: Batch, index: int) -> Tensor:
        optimizer = self.trainer.optimizers[0]
        moments = [t.clone() for s in optimizer.state.values() for t in s.values()]
        self.seen.append([self.weight.detach().clone(), *moments])
        loss = self.loss(batch)
        return loss * self.value if index in self.bad else loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=OPTIMIZER.lr, fused=self.fused)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_step_changes_nothing_and_is_counted(tmp_path, fused, value):
    module = Poisoned({0, 5, 6}, value, fused)
    assert run_toy(tmp_path / "run", module=module, trainer=ONE).step == STEPS
    same = [
        len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(module.seen[1:], module.seen[2:], strict=False)
    ]
    assert [i + 1 for i, unchanged in enumerate(same) if unchanged] == [5, 6]
    assert torch.equal(module.seen[0][0], module.seen[1][0])
    assert all(t.isfinite().all() for step in module.seen for t in step)
    rows = [r for r in read_rows(tmp_path / "run/metrics.csv") if "train/skipped_steps" in r]
    assert [r["train/skipped_steps"] for r in rows[:8]] == [1, 1, 1, 1, 1, 2, 3, 3]
    assert rows[-1]["train/skipped_steps"] == 3
    assert rows[5]["step"] == 6  # skipped steps count as steps: the schedules go on
    assert rows[6]["lr"] < rows[5]["lr"] < rows[4]["lr"]


def test_one_bad_batch_spoils_the_step_that_it_is_gathered_into(tmp_path):
    module = Poisoned({6})
    run_toy(tmp_path / "run", module=module)
    assert torch.equal(module.seen[6][0], module.seen[8][0])
    assert not torch.equal(module.seen[5][0], module.seen[6][0])


@pytest.mark.parametrize("fused", [False, True])
def test_many_bad_steps_in_a_row_end_the_training(tmp_path, fused):
    options = dataclasses.replace(ONE, max_skipped_steps=4)
    module = Poisoned({3, *range(9, 99)}, fused=fused)
    message = r"not finite in the last 4 steps, up to step 13.*last\.ckpt"
    with pytest.raises(DataError, match=message):
        run_toy(tmp_path / "run", module=module, trainer=options)
    last = checkpoints.read(tmp_path / "run/checkpoints/last.ckpt")
    assert all(value.isfinite().all() for value in last["state_dict"].values())


def test_counts_go_on_after_a_resume(tmp_path):
    from mambapipelines.interrupt import Interrupted

    with pytest.raises(Interrupted):
        run_toy(
            tmp_path / "run",
            data=ToyData(0, signal.SIGTERM, 12),
            module=Poisoned({2}),
            trainer=ONE,
        )
    run_toy(tmp_path / "run", module=Poisoned({14}), trainer=ONE)
    rows = [r for r in read_rows(tmp_path / "run/metrics.csv") if "train/skipped_steps" in r]
    assert rows[-1]["train/skipped_steps"] == 2


class Ending(ToyData):
    """Three batches and no more."""

    def train_dataloader(self):
        from mambapipelines.loading import StepDataset, loader

        return loader(StepDataset(self.make), [(i, 16, 4) for i in range(3)])  # pyright: ignore


def test_data_that_ends_is_said(tmp_path):
    with pytest.raises(DataError, match="training data ended after step 3 of 30"):
        run_toy(tmp_path / "run", data=Ending(), trainer=ONE)


class Failing(MakeBatch):
    """A worker that finds a truncated file, or that is killed."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def __call__(self, number: int, window: int, batch: int) -> Batch:
        if number == 8 and self.how == "killed":
            time.sleep(0.3)  # until the batches before are delivered
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 8:
            raise DataError("store.bin is shorter than its index says; build it again.")
        return super().__call__(number, window, batch)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("killed", r"^a data-loading worker died \(.*--data\.num_workers"),
        ("truncated", r"^store\.bin is shorter than its index says; build it again\.$"),
    ],
)
def test_a_worker_that_dies_gives_one_message(tmp_path, how, message):
    data = ToyData(workers=1)
    data.make = Failing(how)
    with pytest.raises(DataError, match=message):
        run_toy(tmp_path / "run", data=data)


def test_other_errors_stay_what_they_are():
    assert explain_loading(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_out_of_memory_says_what_would_fit(tmp_path, monkeypatch):
    def out(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(ToyModule, "loss", out)
    with pytest.raises(DataError, match=r"^out of GPU memory with .* --trainer\.checkpointing sel"):
        run_toy(tmp_path / "run")


def plan(batch: int, window: int, gib: float, mode: str = "none", **model) -> MemoryPlan:
    config = ModelConfig(d_model=256, n_layer=8, **model)
    return MemoryPlan(
        mode, None, config, Stage(0.0, window, batch), "pooling", True, int(gib * 2**30)
    )


def test_advice_names_what_fits():
    text = plan(1, 2**20, 20).advice()
    assert "needs about 24.3 GiB of 20" in text
    assert "--trainer.checkpointing selective (13.6 GiB)" in text
    assert "--model.residual_dtype bfloat16" in text
    assert "windows of at most" in plan(1, 2**22, 20).advice()
    assert "3 windows a step (--data.tokens 3145728)" in plan(8, 2**20, 48, "block").advice()
    line = plan(1, 2**20, 139).line("bases")
    assert line.startswith("expected: 24.3 GiB of 139 for 1 x 1,048,576 bases")


def test_a_budget_sets_every_block():
    model, stages = Backbone(ModelConfig(d_model=64, n_layer=2)), [Stage(0.0, 2**19, 2)]
    cpu = torch.device("cpu")
    found = {}
    for budget in (None, "40GiB", "2GiB", "1GiB"):
        options = TrainerOptions(memory_budget=budget)
        if budget == "1GiB":
            with pytest.raises(UsageError, match="need .* GiB even with checkpointing block"):
                plan_memory(model, stages, options, cpu, autocast=True)
            continue
        plan_memory(model, stages, options, cpu, autocast=True)
        found[budget] = {(block.checkpointing, block.piece) for block in model.blocks}
    assert found == {None: {("none", None)}, "40GiB": {("none", None)}, "2GiB": found["2GiB"]}
    assert found["2GiB"] in ({("selective", 2**18)}, {("block", 2**18)})
    plan_memory(model, stages, TrainerOptions(checkpointing="block"), cpu, autocast=True)
    assert {block.checkpointing for block in model.blocks} == {"block"}


def test_a_budget_needs_a_formula():
    options, stages = TrainerOptions(memory_budget="1GiB"), [Stage(0.0, 64, 1)]
    with pytest.raises(UsageError, match="no memory formula for this model"):
        plan_memory(ToyModule(), stages, options, torch.device("cpu"), autocast=False)
    with pytest.raises(UsageError, match="an amount of memory such as"):
        TrainerOptions(memory_budget="lots")
    with pytest.raises(UsageError, match="auto where a --trainer.memory_budget is given"):
        TrainerOptions(memory_budget="1GiB", checkpointing="block")


@pytest.mark.gpu
def test_a_gpu_skips_without_waiting(tmp_path):
    """No step but those that write metrics waits for the device to say whether it was bad."""
    options = dataclasses.replace(ONE, accelerator="gpu", precision="32-true", log_every_n_steps=30)
    module = Poisoned({5, 6}, fused=True)
    run_toy(tmp_path / "run", module=module, trainer=options)
    assert torch.equal(module.seen[5][0], module.seen[7][0])
    assert not torch.equal(module.seen[7][0], module.seen[8][0])
    row = [r for r in read_rows(tmp_path / "run/metrics.csv") if "train/skipped_steps" in r][-1]
    assert row["train/skipped_steps"] == 2
