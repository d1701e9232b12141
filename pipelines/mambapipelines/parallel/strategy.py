"""Lightning's strategy for sequences that are split over processes, and data over groups of them.

The processes form a mesh, data x sequence: neighbours in rank (one node's GPUs first) hold the
parts of the same windows, and every row of the mesh has windows of its own. A module's loss is the
same on all processes of a row, or its mean over them is the row's loss; so the gradients' mean
over all processes is their sum over the parts and their mean over the data, and a module that
trains with ``ddp`` trains here unchanged.

Gradients are averaged once a step, after the backward pass, by plain messages: unlike DDP's, they
never run beside those of the layers, whose order all processes must agree on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from mambacore.errors import UsageError
from mambacore.parallel import SequenceGroup, average_gradients, split_sequence

NAME = "sequence_parallel"


class SequenceParallelStrategy(DDPStrategy):
    """``Trainer(strategy=SequenceParallelStrategy(2), devices=4)``: windows in 2 parts, 2 windows.

    Also ``Trainer(strategy="sequence_parallel")``, with every window over all processes.

    Args:
        sequence_parallel: processes a window; divides the number of processes. None: all.
        settings: as Lightning's ``DDPStrategy``.

    In `setup` every layer of the module is told which part it gets (`mambacore.parallel`), and
    `teardown` undoes that. The data module gives each process the windows of its data rank
    (`data_place`) and of each the part `sequence.part` (`mambapipelines.training.StepData` does).
    """

    def __init__(self, sequence_parallel: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self._wanted = sequence_parallel
        self._averages = True
        self.sequence = SequenceGroup()
        self.mesh: DeviceMesh | None = None

    @property
    def data_place(self) -> tuple[int, int]:
        """Which of how many data ranks this process belongs to."""
        size = self.sequence.size
        return self.global_rank // size, self.world_size // size

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """For Lightning's own samplers: the data rank."""
        rank, size = self.data_place
        return {"num_replicas": size, "rank": rank}

    def setup_distributed(self) -> None:
        """Start the processes' groups.

        Raises:
            UsageError: they do not divide into groups of that size.
        """
        super().setup_distributed()
        size = self._wanted or self.world_size
        check_division(self.world_size, size)
        if size == 1:
            return
        self.mesh = init_device_mesh(
            self.root_device.type,
            (self.world_size // size, size),
            mesh_dim_names=("data", "sequence"),
        )
        self.sequence = SequenceGroup.of_mesh(self.mesh, "sequence", self._timeout)

    def setup(self, trainer: Trainer) -> None:
        """As DDP's, and tell the layers."""
        super().setup(trainer)
        assert self.lightning_module is not None
        split_sequence(self.lightning_module, self.sequence)

    def teardown(self) -> None:
        """Make the module whole again."""
        if self.lightning_module is not None:
            split_sequence(self.lightning_module, None)
        super().teardown()

    def configure_ddp(self) -> None:
        """Start with the same weights everywhere; nothing is wrapped."""
        assert self.lightning_module is not None
        start_alike(self.lightning_module)

    def backward(
        self, closure_loss: Tensor, optimizer: torch.optim.Optimizer | None, *args: Any, **kw: Any
    ) -> Tensor:
        """The backward pass, then the gradients' mean over all processes."""
        module = self.lightning_module
        assert module is not None
        self.pre_backward(closure_loss)
        closure_loss = self.precision_plugin.pre_backward(closure_loss, module)
        self.precision_plugin.backward(closure_loss, module, optimizer, *args, **kw)
        if self._averages:
            average_gradients(module.parameters())
        closure_loss = self.precision_plugin.post_backward(closure_loss, module)
        self.post_backward(closure_loss)
        return closure_loss

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:  # type: ignore[override]
        """Inside, gradients add up without being averaged: batches that make one step."""
        self._averages = False
        try:
            yield
        finally:
            self._averages = True

    @classmethod
    def register_strategies(cls, strategy_registry: Any) -> None:
        """As ``strategy="sequence_parallel"``."""
        if NAME not in strategy_registry:
            strategy_registry.register(NAME, cls, description="windows split over all processes")


def check_division(processes: int, size: int) -> None:
    """Raise UsageError unless `processes` divide into groups of `size`."""
    if size < 1 or processes % size:
        raise UsageError(
            f"--trainer.sequence_parallel is {size}, but there are {processes} processes "
            "(--trainer.devices times --trainer.num_nodes); it must divide them."
        )


@torch.no_grad()
def start_alike(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    for tensor in [*module.parameters(), *module.buffers()]:
        dist.broadcast(tensor.detach(), 0)


def check_layers(module: nn.Module, size: int) -> None:
    """Raise UsageError for a layer that cannot be split, before any process is started."""
    split_sequence(module, SequenceGroup(0, size))
    split_sequence(module, None)


SequenceParallelStrategy.register_strategies(StrategyRegistry)
