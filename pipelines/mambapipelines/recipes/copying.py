"""Selective copying: tokens scattered among noise, recalled in their order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..options import require
from .options import NetworkOptions, TaskTraining

if TYPE_CHECKING:
    from .results import Context, Result


@dataclass(frozen=True)
class Config:
    """What `recipe copying` does.

    Args:
        mixers: what to train, one model a mixer and seed.
        seeds: of weights and training data.
        length: noise tokens of a sequence.
        vocab_size: tokens, noise and marker included.
        recall: tokens to recall.
        network: the model's size.
        training: how it is trained.
        changes: changes of `training` by mixer.
        questions: fresh test sequences.
        test_seed: of the test sequences.
    """

    mixers: tuple[str, ...] = ("mamba", "s4d", "attention")
    seeds: tuple[int, ...] = (0,)
    length: int = 4096
    vocab_size: int = 16
    recall: int = 16
    network: NetworkOptions = field(default_factory=NetworkOptions)
    training: TaskTraining = field(default_factory=TaskTraining)
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    questions: int = 4096
    test_seed: int = 20_000

    def __post_init__(self) -> None:
        require(bool(self.mixers and self.seeds), "--mixers and --seeds", (), "given")
        require(self.questions >= 1, "--questions", self.questions, "at least 1")


def run(config: Config, context: Context) -> Result:
    """Train every mixer with every seed and test it."""
    import torch

    from mambacore.tasks import SelectiveCopying

    from .figures import line_figure
    from .options import changed
    from .questions import accuracy_on, build_network, train_on
    from .results import Result

    task = SelectiveCopying(config.length, config.vocab_size, config.recall)
    table = [["mixer", "seed", "parameters", "steps", "training, s", "test accuracy, %"]]
    lines: dict[str, list[tuple[list[float], list[float]]]] = {}
    trainings: list[dict[str, Any]] = []
    for mixer in config.mixers:
        options = changed(config.training, config.changes.get(mixer, {}), f"changes.{mixer}")
        for seed in config.seeds:
            torch.manual_seed(seed)
            model = build_network(task, mixer, config.network).to(context.device)
            size = sum(p.numel() for p in model.parameters())
            context.say(
                f"{mixer}, seed {seed}: {size:,} parameters, {config.length:,} noise tokens"
            )
            trained = train_on(task, model, options, seed=seed, say=context.say)
            score = accuracy_on(task, model, config.questions, seed=config.test_seed)
            context.say(f"  test: {score:.4%} of {config.questions * config.recall:,} answers")
            row = {
                "mixer": mixer,
                "seed": seed,
                "parameters": size,
                "steps": trained.steps,
                "seconds": round(trained.seconds, 1),
                "captured": trained.captured,
                "questions": config.questions,
                "accuracy": score,
            }
            context.add(row)
            trainings.append({**row, "losses": trained.losses, "accuracies": trained.accuracies})
            figures = [mixer, f"{seed}", f"{size:,}", f"{trained.steps:,}"]
            table.append([*figures, f"{trained.seconds:.0f}", f"{100 * score:.2f}"])
            steps, scores = zip(*trained.accuracies, strict=True)
            lines.setdefault(mixer, []).append((list(steps), list(scores)))
    title = f"Selective copying, {config.recall} of {config.length:,}"
    figure = line_figure(
        [(title, lines, "step", "validation accuracy")], levels=[{"chance": task.chance}]
    )
    return Result(context.rows, table, figure, {"chance": task.chance, "trainings": trainings})
