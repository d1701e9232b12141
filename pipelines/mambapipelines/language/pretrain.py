"""Train a DNA language model from sequence files to an exported model folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambabio.alphabet import VOCAB_SIZE
from mambabio.prepared import Prepared, load_sequences, store_of
from mambabio.sheet import SampleSheet
from mambabio.store import SequenceStore
from mambacore.errors import UsageError

from .. import environment
from ..cli.fit_parser import FitArguments, to_yaml
from ..fitting import inputs_of, note_start, prolongs, run_of, say_nothing
from ..progress import amount, make_progress
from ..runs import Run
from .options import LanguageData, LanguageModelOptions, LanguageTrainer

# Torch and Lightning take seconds to import, so they are imported where they are needed: what is
# wrong with a sheet is said before.
if TYPE_CHECKING:
    from mambacore.language_model import LanguageModel

    from ..training import Outcome
    from .module import LanguageModule


def pretrain(arguments: FitArguments, *, verbose: bool = False) -> None:
    """Run ``mambabio pretrain``; the run folder holds what comes of it.

    Args:
        arguments: sections data, model, optimizer and trainer.
        verbose: leave Lightning's remarks on.

    Raises:
        DataError, UsageError, OSError: see the command line's exit codes.
        Interrupted: by a signal, after the state was saved.
    """
    options: LanguageData = arguments.sections["data"]
    leader = environment.rank() == 0
    if not options.samples:
        raise UsageError(
            "name a sample sheet, a folder of sequences or a sequence file: --data.samples SHEET."
        )
    samples = Path(options.samples).expanduser().absolute()
    source = load_sequences(samples, labelled=False)
    model = build_model(arguments.sections["model"], arguments.seed)
    with run_of(arguments, leader=leader) as run:
        _pretrain(arguments, run, source, samples, model, leader=leader, verbose=verbose)


def build_model(options: LanguageModelOptions, seed: int) -> LanguageModel:
    """An untrained language model whose weights are a function of the seed.

    Raises:
        UsageError: settings that do not go together, or a mixer that sees the next base.
    """
    import torch

    from mambacore.language_model import LanguageModel

    torch.manual_seed(seed)
    model = LanguageModel(options.model_config(VOCAB_SIZE))
    if not model.causal:
        raise UsageError(
            "--model: a bidirectional mixer sees the base that it shall predict; choose causal "
            "mixers, e.g. --model.mixer mamba."
        )
    return model


def _pretrain(
    arguments: FitArguments,
    run: Run,
    source: SampleSheet | Prepared,
    samples: Path,
    model: LanguageModel,
    *,
    leader: bool,
    verbose: bool,
) -> None:
    from ..training import train
    from .data import LanguageSequences
    from .module import LanguageModule

    options: LanguageData = arguments.sections["data"]
    progress = make_progress() if leader else None
    say = progress.say if progress else say_nothing
    # A folder is where it is, wherever the run is resumed from.
    options = dataclasses.replace(options, samples=str(samples))
    if leader:
        run.write_config(to_yaml({**arguments.config(), "data": dataclasses.asdict(options)}))
    store = store_of(
        source,
        options.cache or run.cache,
        n_policy=options.n_policy,
        validation=options.validation,
        seed=arguments.seed,
        log=say,
    )
    data = LanguageSequences(store, options, arguments.seed)
    if data.validation is None:
        say("no validation records: the last state is taken, and nothing stops early")
    if data.remark:
        say(data.remark)
    if leader:
        notes = {"dropped": dict(store.dropped_counts)}
        note_start(run, arguments, inputs_of(samples, store.inputs), notes)
    parameters = sum(p.numel() for p in model.parameters())
    say(
        f"training {amount(parameters)} parameters on {len(store.select('train')):,} stretches of "
        f"sequence, into {run.folder}"
    )
    trainer: LanguageTrainer = arguments.sections["trainer"]
    module = LanguageModule(
        model,
        arguments.sections["optimizer"],
        segment=-(-options.window // trainer.segments) if trainer.segments > 1 else None,
        carry_gradient=trainer.carry_gradient,
    )
    outcome = train(
        module,
        data,
        run,
        seed=arguments.seed,
        trainer_options=trainer,
        optimizer_options=arguments.sections["optimizer"],
        progress=progress,
        extended=prolongs(arguments),
        verbose=verbose,
    )
    if leader:
        say(f"training ended: {outcome.ended}")
        export(run, module)
        say(f"model (best validation: step {outcome.best_step}) exported to {run.model}")
        run.note(
            finished=environment.now(),
            outcome=dataclasses.asdict(outcome),
            trained_on=_facts(store, outcome, parameters),
        )


def export(run: Run, module: LanguageModule) -> None:
    """Write the best weights (the last ones without validation) as the run's model folder, which
    `mambacore.from_pretrained` loads."""
    from mambacore.checkpoint import save_pretrained

    from .. import checkpoints

    source = run.best if run.best.is_file() else run.last
    module.load_state_dict(checkpoints.read(source)["state_dict"])
    save_pretrained(module.model, run.model)


def _facts(store: SequenceStore, outcome: Outcome, parameters: int) -> dict[str, Any]:
    records = store.select("train")
    return {
        "records": len(records),
        "bases": sum(record.length for record in records),
        "steps": outcome.best_step or outcome.step,
        "parameters": parameters,
    }
