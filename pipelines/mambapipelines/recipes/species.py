"""Species from DNA: variants of a classifier trained, then scored at several window lengths.

The work is that of ``mambabio fit`` and ``mambabio evaluate``, called in this process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..bio.options import DataOptions, ModelOptions
from ..language.options import LanguageData, LanguageOptimizer, LanguageTrainer
from ..options import OptimizerOptions, TrainerOptions, require
from .sections import changed_sections, placed

if TYPE_CHECKING:
    from mambabio.evaluation import Evaluation

    from .results import Context, Result

_SOURCES = {
    "encode": ("dna/encode_may2005",),
    "mtdna": ("dna/mtdna",),
    "great-apes": ("dna/great_apes",),
}
_PRETRAINED, _OTHERS = "pretrained", "others"
_OWN = (_PRETRAINED, _OTHERS)


@dataclass(frozen=True)
class Pretraining:
    """A language model on all species of the training region, which classifiers may start from.

    It has the classifiers' backbone (section `model`).

    Args:
        data: windows; its samples are set by the recipe.
        optimizer: AdamW.
        trainer: how long.
    """

    data: LanguageData = field(default_factory=LanguageData)
    optimizer: OptimizerOptions = field(default_factory=LanguageOptimizer)
    trainer: LanguageTrainer = field(default_factory=LanguageTrainer)


@dataclass(frozen=True)
class Config:
    """What a recipe on species does.

    Args:
        source: which of the public data sets: encode, mtdna or great-apes.
        labels: classes to take; all when empty.
        windows: bases at which models are scored, rising.
        seeds: of weights and training data.
        split: what is scored; val while settings are being chosen.
        trained: windows to train at, a model each, which is scored at its window and the longer
            ones, in a row of its own. `data.window` alone when empty.
        others: also train on the source's other labels; `labels` alone may be called.
        groups: sets of classes by name, each scored by itself with the same models (which need
            `others`), in place of `labels`.
        baselines: also fit the k-mer classifiers.
        variants: name to what it changes, by dotted name ({model.mixer: s4d}) or `others`;
            `pretrained: true` starts from the language model of `pretraining`. Empty: one model
            as configured.
        pretraining: of that language model.
        data: windows of the training, as for `mambabio fit`.
        model: the classifier.
        optimizer: AdamW.
        trainer: how long and how carefully.
    """

    source: Literal["encode", "mtdna", "great-apes"] = "encode"
    labels: tuple[str, ...] = ()
    windows: tuple[int, ...] = (1024, 8192)
    seeds: tuple[int, ...] = (0,)
    split: Literal["val", "test"] = "test"
    trained: tuple[int, ...] = ()
    others: bool = False
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    baselines: bool = True
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    pretraining: Pretraining = field(default_factory=Pretraining)
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)

    def __post_init__(self) -> None:
        require(len(self.windows) > 0, "--windows", self.windows, "at least one length")
        require(len(self.seeds) > 0, "--seeds", self.seeds, "at least one number")
        if self.groups:
            require(not self.labels, "--labels", self.labels, "empty beside --groups")
            require(self.others, "--others", self.others, "true with --groups")
        for name, changes in self.variants.items():
            changed_sections(self, changes, f"variants.{name}", beside=_OWN)


def run(config: Config, context: Context) -> Result:
    """Train every variant with every seed, score each at every window."""
    from . import sheets

    (part,) = _SOURCES[config.source]
    folder = context.require_data(part) / part
    make = {
        "encode": sheets.encode_sheet,
        "mtdna": sheets.mtdna_sheet,
        "great-apes": sheets.great_apes_sheet,
    }[config.source]
    groups = config.groups or {"": config.labels}
    sheets_of = {
        group: make(folder, labels, _subfolder(context.out, group and f"group {group}"))
        for group, labels in groups.items()
    }
    every = make(folder, (), _subfolder(context.out, "others"))
    variants = config.variants or {config.model.mixer: {}}
    init = None
    if any(changes.get(_PRETRAINED) for changes in variants.values()):
        require(config.source == "encode", "--pretraining", config.source, "used with encode")
        init = _pretrain(config, context, folder)
    scorers = [_Scorer(config, context, sheet, group) for group, sheet in sheets_of.items()]
    for name, changes in variants.items():
        sections = changed_sections(config, changes, f"variants.{name}", beside=_OWN)
        if changes.get(_PRETRAINED):
            assert init is not None
            sections["model"] = dataclasses.replace(sections["model"], init=str(init))
        for seed in config.seeds:
            training = every if changes.get(_OTHERS, config.others) else sheets_of[""]
            folders = {}
            for window in config.trained or (config.data.window,):
                folders[window] = context.out / "runs" / f"{_file_name(name)}-{seed}-{window}"
                _fit(context, training, sections, seed, window, folders[window])
            for trained, folder in folders.items():
                row = f"{name}, trained at {trained:,}" if len(folders) > 1 else name
                for window in config.windows:
                    if window >= trained or len(folders) == 1:
                        for scorer in scorers:
                            scorer.score(row, seed, folder, window)
    return _result(config, context, scorers)


def _subfolder(out: Path, name: str) -> Path:
    folder = out / _file_name(name) if name else out
    folder.mkdir(exist_ok=True)
    return folder


def _fit(
    context: Context,
    samples: Path,
    sections: Mapping[str, Any],
    seed: int,
    window: int,
    folder: Path,
) -> None:
    from ..bio.fit import fit
    from ..cli.fit_parser import FitArguments

    data = dataclasses.replace(
        sections["data"],
        samples=str(samples),
        window=window,
        first_window=min(sections["data"].first_window, window),
        cache=str(context.out / "cache"),
        baselines=False,
    )
    chosen = {**sections, "data": data, "trainer": placed(sections["trainer"], context.device)}
    context.say(f"training {folder.name}")
    fit(FitArguments(str(folder), None, seed, chosen, {}))


def _pretrain(config: Config, context: Context, folder: Path) -> Path:
    from ..cli.fit_parser import FitArguments
    from ..language.options import LanguageModelOptions
    from ..language.pretrain import pretrain
    from . import sheets

    out = context.out / "pretraining"
    out.mkdir(exist_ok=True)
    # Every species of the training region, and nothing of the test region.
    samples = sheets.encode_sheet(folder, (), out)
    kept = [line for line in samples.read_text().splitlines() if "\ttest\t" not in line]
    samples.write_text("\n".join(kept) + "\n")
    data = dataclasses.replace(
        config.pretraining.data, samples=str(samples), cache=str(context.out / "cache")
    )
    names = [item.name for item in dataclasses.fields(LanguageModelOptions)]
    model = LanguageModelOptions(**{name: getattr(config.model, name) for name in names})
    sections = {
        "data": data,
        "model": model,
        "optimizer": config.pretraining.optimizer,
        "trainer": placed(config.pretraining.trainer, context.device),
    }
    context.say("pretraining on every species of the training region")
    target = out / "run"
    pretrain(FitArguments(str(target), None, config.seeds[0], sections, {}))
    return target


class _Scorer:
    """Scores trained runs, with the k-mer baselines of a window fitted once."""

    def __init__(self, config: Config, context: Context, samples: Path, group: str) -> None:
        self._config, self._context, self._samples = config, context, samples
        self.group = group
        self._baselines: dict[int, Any] = {}
        self.evaluations: dict[tuple[str, int, int], Evaluation] = {}

    def score(self, name: str, seed: int, folder: Path, window: int) -> None:
        """One row: a run at a window."""
        from mambabio.classifier import SpeciesClassifier
        from mambabio.evaluate import evaluate

        from ..bio.stores import fit_baselines, store_for

        config, context = self._config, self._context
        model = SpeciesClassifier.from_pretrained(folder, device=context.device)
        store = store_for(model.config, self._samples, folder, log=_quiet)
        first = window not in self._baselines
        with_n = None
        if first:
            self._baselines[window] = None
            if config.baselines:
                context.say(f"k-mer baselines at {window:,}")
                self._baselines[window] = fit_baselines(store.narrowed(), window, context.say)
            if model.config.n_policy != "keep":
                with_n = store_for(model.config, self._samples, folder, n_policy="keep", log=_quiet)
        evaluation = evaluate(
            model,
            store,
            split=config.split,
            window=window,
            baselines=self._baselines[window],
            fit_baselines=False,
            with_n=with_n,
            candidates="sheet",
            precision="bfloat16" if context.device.type == "cuda" else "float32",
            log=_quiet,
        )
        self.evaluations[name, seed, window] = evaluation
        evaluation.save(folder / _file_name(f"evaluation {self.group}".strip()))
        what = ", ".join(part for part in (self.group, name, f"seed {seed}") if part)
        context.say(f"{what}: {evaluation.headline}")
        subset = evaluation.excluding_near_duplicates
        context.add(
            {
                "group": self.group,
                "variant": name,
                "seed": seed,
                "window": window,
                "split": config.split,
                "windows": evaluation.windows,
                "macro_accuracy": evaluation.macro_accuracy,
                "low": evaluation.interval.low,
                "high": evaluation.interval.high,
                "chance": evaluation.chance,
                "baseline": evaluation.baseline.name if evaluation.baseline else None,
                "baseline_macro_accuracy": evaluation.baseline.macro_accuracy
                if evaluation.baseline
                else None,
                "n_only": evaluation.n_only,
                "without_near_duplicates": subset.macro_accuracy if subset else None,
                "trained_window": evaluation.trained_window,
            }
        )


def _quiet(text: str) -> None:
    """Nothing is said."""


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _result(config: Config, context: Context, scorers: list[_Scorer]) -> Result:
    from .figures import line_figure
    from .results import Result

    table = [["macro accuracy", "seed", *(f"{window:,}" for window in config.windows)]]
    panels, levels = [], []
    for scorer in scorers:
        rows = [row for row in context.rows if row["group"] == scorer.group]
        lines = _add_rows(config, table, rows, f"{scorer.group}: " if scorer.group else "")
        classes = len(config.groups.get(scorer.group, config.labels)) or "all"
        title = f"{config.source}, {scorer.group or f'{classes} classes'}"
        panels.append((title, lines, "bases in a window", "macro accuracy"))
        levels.append({"chance": rows[0]["chance"]})
    figure = line_figure(panels, levels=levels)
    evaluations = [
        {"group": scorer.group, "variant": name, "seed": seed, **evaluation.to_dict()}
        for scorer in scorers
        for (name, seed, _), evaluation in scorer.evaluations.items()
    ]
    return Result(context.rows, table, figure, {"evaluations": evaluations})


def _add_rows(
    config: Config, table: list[list[str]], rows: Sequence[Mapping[str, Any]], before: str
) -> dict[str, list[Any]]:
    """Append a group's rows, each begun with `before`, to the table; returns its curves."""
    lines: dict[str, list[Any]] = {}
    for name, seed in dict.fromkeys((row["variant"], row["seed"]) for row in rows):
        mine = {r["window"]: r for r in rows if (r["variant"], r["seed"]) == (name, seed)}
        scored = [mine.get(window) for window in config.windows]
        cells = [
            f"{m['macro_accuracy']:.3f} ({m['low']:.3f} to {m['high']:.3f})" if m else "-"
            for m in scored
        ]
        table.append([before + name, str(seed), *cells])
        without = [m["without_near_duplicates"] if m else None for m in scored]
        if any(value is not None for value in without):
            cells = ["-" if value is None else f"{value:.3f}" for value in without]
            table.append([f"{before}{name}, without near-duplicates", str(seed), *cells])
        scores = [m["macro_accuracy"] for m in mine.values()]
        lines.setdefault(name, []).append((list(mine), scores))
    firsts = [next(r for r in rows if r["window"] == window) for window in config.windows]
    if config.baselines and any(row["baseline"] for row in firsts):
        cells = [
            f"{r['baseline_macro_accuracy']:.3f} ({r['baseline']})" if r["baseline"] else "-"
            for r in firsts
        ]
        table.append([f"{before}best k-mer classifier", "", *cells])
        found = [r for r in firsts if r["baseline"]]
        curve = ([r["window"] for r in found], [r["baseline_macro_accuracy"] for r in found])
        lines["k-mer"] = [curve]
    cells = ["-" if r["n_only"] is None else f"{r['n_only']:.3f}" for r in firsts]
    table.append([f"{before}a tree on runs of N, before they are cut", "", *cells])
    table.append([f"{before}chance", "", *(f"{r['chance']:.3f}" for r in firsts)])
    table.append([f"{before}{config.split} windows", "", *(f"{r['windows']:,}" for r in firsts)])
    return lines
