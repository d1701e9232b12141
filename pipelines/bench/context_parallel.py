"""Windows split over the GPUs of one host: do gradients agree, what do time and memory become.

    torchrun --nproc-per-node 2 pipelines/bench/context_parallel.py [--out FILE.csv]

On every process the same: first the gradients of a small model in float32, split over all
processes, against those of one (the largest difference, relative to the largest gradient). Then a
language model's training steps (loss in chunks, AdamW) under bf16 autocast, as in the table of
`pipelines/README.md`: `--length` positions on one process alone, the same length split, and as
many positions a process as one had. Times are medians of `--steps` steps after three; memory is the
most that torch had allocated, largest of the processes. On a machine without GPUs it runs on gloo;
choose a small `--length`.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import time

import torch
import torch.distributed as dist
from torch import Tensor

from mambacore import LanguageModel, ModelConfig
from mambacore.checkpointing import set_checkpointing
from mambacore.losses import chunked_cross_entropy
from mambacore.parallel import SequenceGroup, average_gradients, split_sequence

VOCABULARY = 16
WHOLE = SequenceGroup()


def build(arguments: argparse.Namespace, device: torch.device, layers: int) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=VOCABULARY,
        d_model=arguments.d_model,
        n_layer=layers,
        residual_dtype=arguments.residual,
    )
    return LanguageModel(config).to(device)


def loss_of(model: LanguageModel, tokens: Tensor, group: SequenceGroup) -> Tensor:
    """Of a row (1, L + 1) of tokens, of which this process takes its part."""
    start, stop = group.part(tokens.shape[1] - 1)
    own = tokens[:, start : stop + 1].to(next(model.parameters()).device)
    hidden, _ = model.hidden(own[:, :-1])
    weight = model.embedding.weight[:VOCABULARY]
    return chunked_cross_entropy(hidden, weight, own[:, 1:]).over(group).mean()


def gradients(model: LanguageModel, tokens: Tensor, group: SequenceGroup) -> dict[str, Tensor]:
    split_sequence(model, group)
    model.zero_grad()
    loss_of(model, tokens, group).backward()
    if group.size > 1:
        average_gradients(model.parameters())
    split_sequence(model, None)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def agreement(arguments: argparse.Namespace, device: torch.device, group: SequenceGroup) -> dict:
    """Largest gradient difference over largest gradient, of all and of the worst parameter."""
    length = arguments.check_length
    tokens = torch.randint(0, VOCABULARY, (1, length + 1), generator=torch.Generator())
    model = build(arguments, device, 2)
    alone = gradients(model, tokens, WHOLE)
    split = gradients(model, tokens, group)
    largest = max(g.abs().max().item() for g in alone.values())
    off = {name: (split[name] - g).abs().max().item() for name, g in alone.items()}
    each = {name: off[name] / g.abs().max().item() for name, g in alone.items()}
    worst = max(each, key=each.__getitem__)
    return {"relative": max(off.values()) / largest, "worst": each[worst], "parameter": worst}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    arguments: argparse.Namespace, device: torch.device, group: SequenceGroup, length: int
) -> tuple[float, float]:
    """Milliseconds a step and GiB at its peak."""
    model = build(arguments, device, arguments.n_layer)
    set_checkpointing(model, arguments.checkpointing)
    split_sequence(model, group)
    cuda = device.type == "cuda"
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=cuda)
    tokens = torch.randint(0, VOCABULARY, (1, length + 1), generator=torch.Generator())
    times = []
    for step in range(3 + arguments.steps):
        if step == 3 and cuda:
            torch.cuda.reset_peak_memory_stats(device)
        synchronise(device)
        if group.size > 1:
            dist.barrier()
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            loss = loss_of(model, tokens, group)
        loss.backward()
        if group.size > 1:
            average_gradients(model.parameters())
        optimiser.step()
        optimiser.zero_grad()
        synchronise(device)
        times.append(time.perf_counter() - began)
    split_sequence(model, None)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if cuda else float("nan")
    return 1000 * statistics.median(times[3:]), peak


def largest(values: tuple[float, ...], device: torch.device) -> list[float]:
    """The largest of all processes."""
    tensor = torch.tensor(values, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=2**20, help="positions on one process")
    parser.add_argument("--check-length", type=int, default=100_001)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--n-layer", type=int, default=8)
    parser.add_argument("--residual", default="float32", choices=["float32", "bfloat16", "model"])
    parser.add_argument("--checkpointing", default="none", help="none, selective or block")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", help="CSV file for the table")
    arguments = parser.parse_args()

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    leader, world = dist.get_rank() == 0, dist.get_world_size()
    group = SequenceGroup.split_world(world)

    def say(text: str) -> None:
        if leader:
            print(text, flush=True)

    say(f"{world} x {torch.cuda.get_device_name(device) if cuda else 'CPU'}")
    found = agreement(arguments, device, group)
    say(
        f"gradients of {world} processes and of one, float32, {arguments.check_length} positions: "
        f"{found['relative']:.2e} of the largest; worst {found['parameter']} {found['worst']:.2e}"
    )
    rows = []
    for parts, length in ((1, arguments.length), (world, arguments.length),
                          (world, world * arguments.length)):  # fmt: skip
        used = group if parts > 1 else WHOLE
        ms, peak = largest(measure(arguments, device, used, length), device)
        rows.append({"processes": parts, "length": length, "ms": round(ms, 2),
                     "GiB": round(peak, 2)})  # fmt: skip
        against = f"  {ms / rows[0]['ms']:.3f} x the time of one" if parts > 1 else ""
        say(f"{parts} process(es), {length:>9} positions: {ms:8.1f} ms  {peak:6.2f} GiB{against}")
        if cuda:
            torch.cuda.empty_cache()
    if leader and arguments.out:
        with open(arguments.out, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
