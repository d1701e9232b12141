"""Induction heads: models trained at one short length, tested to a million tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..options import require
from .options import NetworkOptions, TaskTraining

if TYPE_CHECKING:
    from mambacore.tasks import InductionHeads

    from .results import Context, Result


@dataclass(frozen=True)
class Config:
    """What `recipe induction` does.

    Args:
        mixers: what to train, one model a mixer and seed.
        seeds: of weights and training data.
        length: the one length of the training sequences.
        vocab_size: tokens, the special one included.
        network: the model's size.
        training: how it is trained.
        changes: changes of `training` by mixer, e.g. {attention: {lr: 0.0005}}.
        lengths: test lengths with `questions` fresh sequences each.
        long_lengths: test lengths with `long_questions` each.
        questions, long_questions: how many.
        longest: the longest test length of a mixer that cannot go to the end.
        chunk: positions that pass through a model at once in longer test sequences.
        whole: mixers that see test sequences whole whatever their length.
        test_seed: of the test sequences.
    """

    mixers: tuple[str, ...] = ("mamba", "s4d", "attention")
    seeds: tuple[int, ...] = (0, 1, 2)
    length: int = 256
    vocab_size: int = 16
    network: NetworkOptions = field(default_factory=NetworkOptions)
    training: TaskTraining = field(default_factory=TaskTraining)
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    lengths: tuple[int, ...] = tuple(2**n for n in range(6, 17))
    long_lengths: tuple[int, ...] = (2**18, 2**20)
    questions: int = 1024
    long_questions: int = 256
    longest: dict[str, int] = field(default_factory=lambda: {"attention": 2**15})
    chunk: int = 2**14
    whole: tuple[str, ...] = ("attention",)
    test_seed: int = 20_000

    def __post_init__(self) -> None:
        require(bool(self.mixers and self.seeds), "--mixers and --seeds", (), "given")
        require(self.length >= 3, "--length", self.length, "at least 3")


def run(config: Config, context: Context) -> Result:
    """Train every mixer with every seed and test it at every length."""
    import torch

    from mambacore.tasks import InductionHeads

    from .options import changed
    from .questions import accuracy_on, build_network, train_on

    task = InductionHeads(config.length, config.vocab_size)
    trainings: list[dict[str, Any]] = []
    for mixer in config.mixers:
        options = changed(config.training, config.changes.get(mixer, {}), f"changes.{mixer}")
        for seed in config.seeds:
            torch.manual_seed(seed)
            model = build_network(task, mixer, config.network).to(context.device)
            size = sum(p.numel() for p in model.parameters())
            context.say(f"{mixer}, seed {seed}: {size:,} parameters, length {config.length}")
            trained = train_on(task, model, options, seed=seed, say=context.say)
            trainings.append(
                {
                    "mixer": mixer,
                    "seed": seed,
                    "parameters": size,
                    "steps": trained.steps,
                    "seconds": round(trained.seconds, 1),
                    "captured": trained.captured,
                    "losses": trained.losses,
                    "accuracies": trained.accuracies,
                }
            )
            for length, questions in _tests(config, mixer):
                score = accuracy_on(
                    InductionHeads(length, config.vocab_size),
                    model,
                    questions,
                    seed=config.test_seed + length,
                    chunk=None if mixer in config.whole else config.chunk,
                )
                context.say(f"  length {length:,}: {score:.4%} of {questions:,}")
                context.add(
                    {
                        "mixer": mixer,
                        "seed": seed,
                        "length": length,
                        "questions": questions,
                        "accuracy": score,
                    }
                )
    return _result(config, context, task, trainings)


def _tests(config: Config, mixer: str) -> list[tuple[int, int]]:
    tests = [(length, config.questions) for length in config.lengths]
    tests += [(length, config.long_questions) for length in config.long_lengths]
    longest = config.longest.get(mixer, tests[-1][0])
    return [test for test in tests if test[0] <= longest]


def _result(
    config: Config, context: Context, task: InductionHeads, trainings: list[dict[str, Any]]
) -> Result:
    from .figures import line_figure
    from .results import Result, power

    lengths = [*config.lengths, *config.long_lengths]
    table = [["mixer", "seed", *map(power, lengths)]]
    lines: dict[str, list[tuple[list[float], list[float]]]] = {}
    for training in trainings:
        mixer, seed = training["mixer"], training["seed"]
        scores = {
            row["length"]: row["accuracy"]
            for row in context.rows
            if (row["mixer"], row["seed"]) == (mixer, seed)
        }
        cells = [f"{100 * scores[n]:.2f}" if n in scores else "-" for n in lengths]
        table.append([mixer, str(seed), *cells])
        lines.setdefault(mixer, []).append((list(scores), list(scores.values())))
    title = f"Induction heads, trained at {power(config.length)} only"
    figure = line_figure(
        [(title, lines, "length of the test sequences", "accuracy")],
        levels=[{"chance": task.chance}],
    )
    return Result(context.rows, table, figure, {"chance": task.chance, "trainings": trainings})
