"""A whole model over several processes: each layer told of them, gradients averaged."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mambacore.errors import UsageError
from mambacore.parallel.group import SequenceGroup

_BUCKET = 32 << 20  # bytes of gradients a message


def split_sequence(model: nn.Module, group: SequenceGroup | None) -> None:
    """From now on every call of `model` gets this process's part of a sequence.

    Outputs, pooled vectors and gradients are then those of the whole sequence, to rounding: its
    mixers receive the state of the parts before, its pooling reduces over all parts. Every process
    has to make the same calls. No state can be given to the model; the one that it returns is the
    state after the own part.

    Args:
        model: any module made of mambacore's layers.
        group: who holds the parts; None undoes it.

    Raises:
        UsageError: a layer that needs the whole sequence in one place, by name. Nothing is
            changed then.

    >>> from mambacore import LanguageModel, ModelConfig
    >>> model = LanguageModel(ModelConfig(vocab_size=8, d_model=8, mixer="attention"))
    >>> split_sequence(model, SequenceGroup(0, 2))
    Traceback (most recent call last):
    mambacore.errors.UsageError: backbone.layers.0.mixer (AttentionMixer) needs the whole sequence\
 in one process; train without sequence parallelism, or with mamba, s4d or bidirectional layers
    """
    group = None if group is None or group.size == 1 else group
    aware = []
    for name, module in model.named_modules():
        if not hasattr(module, "sequence_group"):
            continue
        if group is not None and not getattr(module, "splits", False):
            raise UsageError(
                f"{name or 'the model'} ({type(module).__name__}) needs the whole sequence in one "
                "process; train without sequence parallelism, or with mamba, s4d or bidirectional "
                "layers"
            )
        aware.append(module)
    for module in aware:
        module.sequence_group = group


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor], group: object = None) -> None:
    """Replace every gradient by its mean over the processes of a torch process group.

    Over all of them (None) that is the sum over the parts of a sequence and the mean over the data
    ranks, when every process differentiates the same loss of its sequence (`SequenceGroup.gather`).
    A parameter without a gradient here counts as zeros; every process lists the same parameters.
    """
    size = dist.get_world_size(group)  # type: ignore[arg-type]
    wanted = [p for p in parameters if p.requires_grad]
    for p in wanted:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for p in wanted:
        assert p.grad is not None
        by_dtype.setdefault(p.grad.dtype, []).append(p.grad)
    for gradients in by_dtype.values():
        for bucket in _buckets(gradients):
            flat = torch.cat([g.reshape(-1) for g in bucket])
            dist.all_reduce(flat, group=group)  # type: ignore[arg-type]
            flat /= size
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))


def _buckets(gradients: list[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        bucket.append(gradient)
        size += gradient.numel() * gradient.element_size()
        if size >= _BUCKET:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket
