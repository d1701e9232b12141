"""Language modelling of DNA: perplexity against context, on the same bases at every length.

The work is that of ``mambabio pretrain`` and ``mambabio perplexity``, called in this process.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..language.options import (
    LanguageData,
    LanguageModelOptions,
    LanguageOptimizer,
    LanguageTrainer,
)
from ..options import OptimizerOptions, require
from .sections import changed_sections, placed

if TYPE_CHECKING:
    from mambabio.perplexity import Perplexity

    from .results import Context, Result

_SOURCE = "dna/encode_may2005"


@dataclass(frozen=True)
class Config:
    """What `recipe perplexity` does.

    Args:
        labels: species to take; all of the training region when empty.
        contexts: bases that a model reads, rising.
        scored: bases at the end of each window whose prediction counts.
        most: windows at most.
        markov_order: of the interpolated Markov model; -1 for none.
        seeds: of weights and training data.
        split: what is scored; val while settings are being chosen.
        variants: name to what it changes, by dotted name ({model.mixer: s4d}).
        data: windows of the training, as for `mambabio pretrain`.
        model: the language model.
        optimizer: AdamW.
        trainer: how long and how carefully.
    """

    labels: tuple[str, ...] = ()
    contexts: tuple[int, ...] = tuple(2**n for n in range(10, 18))
    scored: int = 1024
    most: int = 512
    markov_order: int = 12
    seeds: tuple[int, ...] = (0,)
    split: Literal["val", "test"] = "test"
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: LanguageData = field(default_factory=LanguageData)
    model: LanguageModelOptions = field(default_factory=LanguageModelOptions)
    optimizer: OptimizerOptions = field(default_factory=LanguageOptimizer)
    trainer: LanguageTrainer = field(default_factory=LanguageTrainer)

    def __post_init__(self) -> None:
        require(len(self.contexts) > 0, "--contexts", self.contexts, "at least one length")
        for name, changes in self.variants.items():
            changed_sections(self, changes, f"variants.{name}")


def run(config: Config, context: Context) -> Result:
    """Train every variant with every seed and score it at every context."""
    from mambabio.classifier_files import model_folder
    from mambabio.markov import MarkovModel
    from mambabio.perplexity import perplexity
    from mambacore.checkpoint import from_pretrained

    from ..language.stores import store_for
    from .sheets import encode_sheet

    samples = encode_sheet(context.require_data(_SOURCE) / _SOURCE, config.labels, context.out)
    scores: dict[tuple[str, int], Perplexity] = {}
    markov = None
    for name, changes in (config.variants or {config.model.mixer: {}}).items():
        sections = changed_sections(config, changes, f"variants.{name}")
        for seed in config.seeds:
            folder = context.out / "runs" / f"{name}-{seed}"
            _train(context, samples, sections, seed, folder)
            store = store_for(samples, folder, log=context.say)
            if markov is None and config.markov_order >= 0:
                context.say(f"the Markov model of order {config.markov_order}")
                markov = MarkovModel.of_store(store, order=config.markov_order, log=context.say)
            model = from_pretrained(model_folder(folder), device=context.device)
            found = perplexity(
                model,
                store,
                split=config.split,
                contexts=config.contexts,
                scored=config.scored,
                most=config.most,
                markov=markov,
                precision="bfloat16" if context.device.type == "cuda" else "float32",
            )
            scores[name, seed] = found
            context.say(f"{name}, seed {seed}\n{found.to_text()}")
            for score in found.contexts:
                _add(context, name, seed, found, score)
    first = next(iter(scores.values()))
    if first.markov is not None:
        _add(context, f"Markov, order {config.markov_order}", None, first, first.markov)
    return _result(config, context, scores)


def _train(
    context: Context, samples: Path, sections: dict[str, Any], seed: int, folder: Path
) -> None:
    from ..cli.fit_parser import FitArguments
    from ..language.pretrain import pretrain

    data = dataclasses.replace(
        sections["data"], samples=str(samples), cache=str(context.out / "cache")
    )
    chosen = {**sections, "data": data, "trainer": placed(sections["trainer"], context.device)}
    context.say(f"training {folder.name}")
    pretrain(FitArguments(str(folder), None, seed, chosen, {}))


def _add(context: Context, name: str, seed: int | None, found: Perplexity, score: Any) -> None:
    context.add(
        {
            "variant": name,
            "seed": seed,
            "context": score.context,
            "split": found.split,
            "windows": found.windows,
            "bits": score.bits,
            "low": score.low,
            "high": score.high,
            "perplexity": score.perplexity,
        }
    )


def _result(config: Config, context: Context, scores: dict[tuple[str, int], Perplexity]) -> Result:
    from .figures import line_figure
    from .results import Result, power

    head = ["perplexity a base", "seed", *map(power, config.contexts), "bits saved by context"]
    table = [head]
    lines: dict[str, list[Any]] = {}
    for (name, seed), found in scores.items():
        cells = [f"{score.perplexity:.4f}" for score in found.contexts]
        gain, low, high = found.gain
        table.append([name, str(seed), *cells, f"{gain:.4f} ({low:.4f} to {high:.4f})"])
        curve = [s.context for s in found.contexts], [s.perplexity for s in found.contexts]
        lines.setdefault(name, []).append(curve)
    first = next(iter(scores.values()))
    levels = {}
    if first.markov is not None:
        name = f"Markov, order {config.markov_order}"
        levels[name] = first.markov.perplexity
        cells = [f"{first.markov.perplexity:.4f}"] * len(config.contexts)
        table.append([name, "", *cells, ""])
    windows = f"{first.windows:,} {config.split} windows, last {config.scored:,} bases"
    figure = line_figure(
        [(f"ENCODE regions: {windows}", lines, "context, bases", "perplexity")], levels=[levels]
    )
    details = [
        {"variant": name, "seed": seed, **dataclasses.asdict(found)}
        for (name, seed), found in scores.items()
    ]
    return Result(context.rows, table, figure, {"scores": details})
