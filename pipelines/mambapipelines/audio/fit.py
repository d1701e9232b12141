"""Train a waveform model from recordings to an exported model folder."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambaaudio.corpus import Corpus, build_corpus
from mambaaudio.model_config import WaveformConfig
from mambaaudio.sheet import SampleSheet, load_samples
from mambaaudio.windows import Layout
from mambacore.errors import UsageError

from .. import environment
from ..cli.fit_parser import FitArguments, to_yaml
from ..fitting import inputs_of, note_start, prolongs, run_of, say_nothing
from ..progress import amount, make_progress
from ..runs import Run
from .corpora import gain_of
from .options import AudioDataOptions, AudioModelOptions

# Torch and Lightning take seconds to import, so they are imported where they are needed: what is
# wrong with a sheet is said before.
if TYPE_CHECKING:
    from ..training import Outcome
    from .module import WaveformModule


def fit(arguments: FitArguments, *, verbose: bool = False) -> None:
    """Run ``mambaaudio fit``; the run folder holds what comes of it.

    Args:
        arguments: sections data, model, optimizer and trainer.
        verbose: leave Lightning's remarks on.

    Raises:
        DataError, UsageError, OSError: see the command line's exit codes.
        Interrupted: by a signal, after the state was saved.
    """
    data_options: AudioDataOptions = arguments.sections["data"]
    model_options: AudioModelOptions = arguments.sections["model"]
    if not data_options.samples:
        raise UsageError("name a folder of recordings or a sample sheet: --data.samples PATH.")
    samples = Path(data_options.samples).expanduser().absolute()
    given = _given_model(model_options, data_options)
    code = _code(data_options, given)
    for option in ("input_noise", "spread_penalty", "jump_limit"):
        if getattr(model_options, option) and Layout(code).per_sample > 1:
            raise UsageError(
                f"--model.{option} is {getattr(model_options, option)}, but a sample is several "
                f"symbols in {code}: leave it out, or take --data.code mulaw8 or linear8."
            )
    if given is None:
        sheet = load_samples(samples)
    else:
        sheet = load_samples(samples, labels=given.labels, speakers=given.speakers)
    with run_of(arguments, leader=environment.rank() == 0) as run:
        _fit(arguments, run, sheet, samples, given, verbose=verbose)


def _code(options: AudioDataOptions, given: WaveformConfig | None) -> str:
    return options.code if given is None else given.code


def _given_model(options: AudioModelOptions, data: AudioDataOptions) -> WaveformConfig | None:
    """The configuration of the model to fine-tune, if any.

    Raises:
        DataError: no model there.
        UsageError: an option that says otherwise than the model.
    """
    if options.init is None:
        return None
    from mambaaudio.model_files import read_model_config

    config = read_model_config(Path(options.init).expanduser())
    for name, value in options.given.items():
        if name != "dropout" and value != getattr(config.backbone, name):
            raise UsageError(
                f"--model.{name} is {value!r}, but the model to fine-tune, {options.init}, has "
                f"{getattr(config.backbone, name)!r}. Leave the option out."
            )
    if data.rate not in (None, config.rate):
        raise UsageError(
            f"--data.rate is {data.rate}, but the model to fine-tune works at {config.rate} Hz. "
            "Leave the option out: recordings are resampled."
        )
    # The default code and gain stand for "as the model".
    if data.code not in (AudioDataOptions.code, config.code):
        raise UsageError(
            f"--data.code is {data.code}, but the model to fine-tune has {config.code}. Leave the "
            "option out."
        )
    if data.clips and not config.end_event:
        raise UsageError(
            "--data.clips true needs a model with an end event; the one to fine-tune was trained "
            "on long recordings. Leave the option out."
        )
    return config


def _corpus(
    options: AudioDataOptions,
    sheet: SampleSheet,
    given: WaveformConfig | None,
    run: Run,
    **rest: Any,
) -> Corpus:
    gain: Any = options.gain
    if given is not None and gain == "none":
        gain = gain_of(given)
    return build_corpus(
        sheet,
        options.cache or run.cache,
        rate=options.rate if given is None else given.rate,
        channel=options.channel,
        gain=gain,
        validation=options.validation,
        validation_by=options.validation_by,
        skip_bad=options.skip_bad,
        **rest,
    )


def build_config(
    options: AudioModelOptions, corpus: Corpus, layout: Layout, given: WaveformConfig | None
) -> WaveformConfig:
    """The model's configuration: of the model to fine-tune, or of a new one for a corpus.

    Raises:
        UsageError: settings that do not go together.
    """
    if given is not None:
        backbone = given.backbone
        if options.dropout is not None:
            backbone = dataclasses.replace(backbone, dropout=options.dropout)
        return dataclasses.replace(given, backbone=backbone, gain=corpus.gain)
    from mambacore.multiscale import MultiScaleConfig

    return WaveformConfig(
        rate=corpus.rate,
        code=layout.code,
        backbone=MultiScaleConfig(**options.backbone()),
        labels=corpus.labels,
        speakers=corpus.speakers,
        end_event=layout.clips,
        gain=corpus.gain,
    )


def _fit(
    arguments: FitArguments,
    run: Run,
    sheet: SampleSheet,
    samples: Path,
    given: WaveformConfig | None,
    *,
    verbose: bool,
) -> None:
    data_options: AudioDataOptions = arguments.sections["data"]
    model_options: AudioModelOptions = arguments.sections["model"]
    leader = environment.rank() == 0
    progress = make_progress() if leader else None
    say = progress.say if progress else say_nothing
    # A folder is where it is, wherever the run is resumed from.
    if leader:
        values = arguments.config()
        values["data"]["samples"] = str(samples)
        if model_options.init is not None:
            values["model"]["init"] = str(Path(model_options.init).expanduser().absolute())
        run.write_config(to_yaml(values))
    corpus = _corpus(data_options, sheet, given, run, seed=arguments.seed, log=say)
    clips = data_options.clips
    if given is not None and not given.end_event:
        clips = False
    code = _code(data_options, given)
    layout = Layout.choose(corpus, data_options.window, code=code, clips=clips)
    config = build_config(model_options, corpus, layout, given)

    import torch

    from mambaaudio.model import WaveformModel

    from ..training import train
    from .data import WaveformData
    from .module import WaveformModule

    torch.manual_seed(arguments.seed)
    model = WaveformModel(config)
    if given is not None and arguments.resume is None:
        assert model_options.init is not None
        known = WaveformModel.from_pretrained(Path(model_options.init).expanduser())
        model.load_state_dict(known.state_dict())
    data = WaveformData(corpus, layout, data_options, arguments.seed)
    if data.validation is None:
        say("no validation recordings: the last state is taken, and nothing stops early")
    if leader:
        notes = {"skipped": [list(entry) for entry in corpus.skipped], "init": model_options.init}
        inputs = inputs_of(samples, [dict(entry) for entry in corpus.inputs])
        note_start(run, arguments, inputs, notes)
    parameters = sum(p.numel() for p in model.parameters())
    what = "clips, read whole" if layout.clips else f"windows of {data_options.window:,} samples"
    say(f"training {amount(parameters)} parameters on {what}, into {run.folder}")
    module = WaveformModule(
        model,
        arguments.sections["optimizer"],
        **model_options.loss,
    )
    outcome = train(
        module,
        data,
        run,
        seed=arguments.seed,
        trainer_options=arguments.sections["trainer"],
        optimizer_options=arguments.sections["optimizer"],
        monitor="val/bits",
        progress=progress,
        extended=prolongs(arguments),
        verbose=verbose,
    )
    if leader:
        say(f"training ended: {outcome.ended}")
        export(run, module, corpus, data_options.window, outcome, parameters)
        say(f"model (best validation: step {outcome.best_step}) exported to {run.model}")
        run.note(finished=environment.now(), outcome=dataclasses.asdict(outcome))


def export(
    run: Run,
    module: WaveformModule,
    corpus: Corpus,
    window: int,
    outcome: Outcome,
    parameters: int,
) -> None:
    """Write the best weights (the last ones without validation) as the run's model folder."""
    from .. import checkpoints

    source = run.best if run.best.is_file() else run.last
    module.load_state_dict(checkpoints.read(source)["state_dict"])
    facts = {
        "recordings": len(corpus.select("train")),
        "seconds": round(corpus.seconds("train"), 3),
        "window": window,
        "gain": corpus.gain_mode,
        "steps": outcome.best_step or outcome.step,
        "parameters": parameters,
        # One for all files: there may be thousands; environment.json lists each.
        "inputs_sha256": hashlib.sha256(
            "".join(entry["sha256"] for entry in corpus.inputs).encode()
        ).hexdigest(),
    }
    module.model.config = dataclasses.replace(module.model.config, trained_on=facts)
    module.model.save_pretrained(run.model)
