"""Train a species classifier from a sample sheet to an exported model folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambabio.prepared import Prepared, load_sequences, store_of
from mambabio.sheet import SampleSheet
from mambabio.store import SequenceStore
from mambacore.errors import UsageError

from .. import environment
from ..cli.fit_parser import FitArguments, to_yaml
from ..fitting import inputs_of, note_start, prolongs, run_of, say_nothing
from ..options import TrainerOptions
from ..progress import amount, make_progress
from ..runs import Run
from .options import DataOptions, ModelOptions

# Torch and Lightning take seconds to import, so they are imported where they are needed: what is
# wrong with a sheet is said before.
if TYPE_CHECKING:
    from mambabio.classifier import SpeciesClassifier

    from ..training import Outcome
    from .module import SpeciesModule

_CALIBRATION_WINDOWS = 2048


def fit(arguments: FitArguments, *, verbose: bool = False) -> None:
    """Run ``mambabio fit``; the run folder holds what comes of it.

    Args:
        arguments: sections data, model, optimizer and trainer.
        verbose: leave Lightning's remarks on.

    Raises:
        DataError, UsageError, OSError: see the command line's exit codes.
        Interrupted: by a signal, after the state was saved.
    """
    data_options: DataOptions = arguments.sections["data"]
    leader = environment.rank() == 0
    if not data_options.samples:
        raise UsageError("name a sample sheet or a folder of sequences: --data.samples SHEET.")
    samples = Path(data_options.samples).expanduser().absolute()
    source = load_sequences(samples)
    model = build_model(arguments.sections["model"], data_options, source, arguments.seed)
    if arguments.resume is None and arguments.sections["model"].init:
        notes = _start_from(model, arguments.sections["model"].init)
    else:
        notes = {}
    with run_of(arguments, leader=leader) as run:
        _fit(arguments, run, source, samples, model, notes, leader=leader, verbose=verbose)


def _start_from(model: SpeciesClassifier, folder: str) -> dict[str, Any]:
    from mambabio.language import start_from

    return {"init": start_from(model, Path(folder).expanduser())}


def build_model(
    options: ModelOptions, data: DataOptions, source: SampleSheet | Prepared, seed: int
) -> SpeciesClassifier:
    """An untrained classifier whose weights are a function of the seed.

    Raises:
        UsageError: settings that do not go together, or fewer than two labels.
    """
    if len(source.labels) < 2:
        raise UsageError(
            f"{source.source} has only the label {', '.join(source.labels)!r}; a classifier needs "
            "two or more."
        )
    import torch

    from mambabio.classifier import SpeciesClassifier
    from mambabio.classifier_config import ClassifierConfig

    config = ClassifierConfig(
        model=options.model_config(),
        labels=source.labels,
        window=data.window,
        pooling=options.pooling,
        head_dropout=options.head_dropout,
        both_strands=options.both_strands,
        n_policy=data.n_policy,
    )
    torch.manual_seed(seed)
    return SpeciesClassifier(config)


def _fit(
    arguments: FitArguments,
    run: Run,
    source: SampleSheet | Prepared,
    samples: Path,
    model: SpeciesClassifier,
    notes: dict[str, Any],
    *,
    leader: bool,
    verbose: bool,
) -> None:
    from ..training import train
    from .data import SpeciesData
    from .module import SpeciesModule
    from .stores import fit_baselines

    data_options: DataOptions = arguments.sections["data"]
    trainer_options: TrainerOptions = arguments.sections["trainer"]
    progress = make_progress() if leader else None
    say = progress.say if progress else say_nothing
    # A folder is where it is, wherever the run is resumed from.
    data_options = dataclasses.replace(data_options, samples=str(samples))
    config = {**arguments.config(), "data": dataclasses.asdict(data_options)}
    if leader:
        run.write_config(to_yaml(config))
    store = store_of(
        source,
        data_options.cache or run.cache,
        n_policy=data_options.n_policy,
        validation=data_options.validation,
        seed=arguments.seed,
        log=say,
    )
    data = SpeciesData(store, data_options, arguments.seed)
    if data.validation is None:
        say("no validation records: the last state is taken, and nothing stops early")
    if data.remark:
        say(data.remark)
    if leader:
        notes = {"dropped": dict(store.dropped_counts), **notes}
        note_start(run, arguments, inputs_of(samples, store.inputs), notes)
    parameters = sum(p.numel() for p in model.parameters())
    say(
        f"training {amount(parameters)} parameters on {len(store.select('train')):,} records, "
        f"{len(source.labels)} classes, into {run.folder}"
    )
    module = SpeciesModule(
        model, arguments.sections["optimizer"], arguments.sections["model"].label_smoothing
    )
    outcome = train(
        module,
        data,
        run,
        seed=arguments.seed,
        trainer_options=trainer_options,
        optimizer_options=arguments.sections["optimizer"],
        progress=progress,
        extended=prolongs(arguments),
        verbose=verbose,
    )
    if leader:
        say(f"training ended: {outcome.ended}")
        export(run, module, store, outcome, parameters)
        say(f"model (best validation: step {outcome.best_step}) exported to {run.model}")
        if data_options.baselines:
            fit_baselines(store, data_options.window, say).save(run.baselines(data_options.window))
        run.note(finished=environment.now(), outcome=dataclasses.asdict(outcome))


def export(
    run: Run, module: SpeciesModule, store: SequenceStore, outcome: Outcome, parameters: int
) -> None:
    """Write the best weights (the last ones without validation) as the run's model folder, with
    the temperature fitted on the validation windows."""
    from mambabio.evaluate import calibrate

    from .. import checkpoints

    source = run.best if run.best.is_file() else run.last
    module.load_state_dict(checkpoints.read(source)["state_dict"])
    model = module.model
    train_records = store.select("train")
    facts = {
        "records": len(train_records),
        "bases": sum(record.length for record in train_records),
        "steps": outcome.best_step or outcome.step,
        "parameters": parameters,
        "inputs": [{"sha256": entry["sha256"]} for entry in store.inputs],
    }
    model.config = dataclasses.replace(model.config, trained_on=facts)
    if store.select("val"):
        calibrate(model.to(outcome.device).eval(), store, most=_CALIBRATION_WINDOWS)
    model.save_pretrained(run.model)
