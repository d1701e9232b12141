"""The command line of ``fit``: LightningCLI's conventions without its habits.

``--config FILE`` (repeatable, later ones win), dotted overrides, ``--print_config``; errors are
`UsageError`, and neither torch nor Lightning is imported to parse or to show the help.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mambacore.errors import UsageError

RESUMABLE = (
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.patience",
    "trainer.checkpoint_minutes",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.sequence_parallel",
    "trainer.threads",
    "trainer.checkpointing",
    "trainer.memory_budget",
    "trainer.max_skipped_steps",
    "data.num_workers",
)
"""What may change when a run is resumed. The first three prolong (or shorten) it."""


@dataclass(frozen=True)
class FitArguments:
    """A parsed command line of ``fit``.

    run: the folder of a new run, or None. resume: the run to go on with, or None. seed: random
    numbers of data and model. sections: each section's options, as its class. overrides: what the
    command line changes in a resumed run, by dotted name.
    """

    run: str | None
    resume: str | None
    seed: int
    sections: Mapping[str, Any]
    overrides: Mapping[str, Any]

    def config(self) -> dict[str, Any]:
        """Everything that ``config.yaml`` holds, as plain values."""
        from ..options import as_dict

        plain = {name: as_dict(options) for name, options in self.sections.items()}
        return {"seed": self.seed, **plain}


def parse_fit(
    argv: Sequence[str], prog: str, sections: Mapping[str, type], epilog: str = ""
) -> FitArguments:
    """Read the command line, the configuration files and, when resuming, the run's own.

    Args:
        argv: arguments after the verb.
        prog: how errors and help call the command.
        sections: name of a section to the dataclass of its options.
        epilog: closing lines of the help.

    Raises:
        UsageError: anything wrong with them.
        SystemExit: after ``--help`` and ``--print_config``, with code 0.
    """
    parser = _parser(prog, sections, epilog)
    argv = shipped_configs(argv)
    if any(argument.startswith("--print_config") for argument in argv):
        _parse(parser, argv, defaults=True)
    given = _parse(parser, argv, defaults=False)
    run, resume = given.get("run"), given.get("resume")
    overrides: dict[str, Any] = {}
    if resume is not None:
        overrides = _resumable(given)
        values = _merged(_read_config(Path(resume)), overrides)
    else:
        full = _parse(parser, argv, defaults=True)
        values = {name: full.get(name) for name in ("seed", *sections)}
        values = {k: v.as_dict() if hasattr(v, "as_dict") else v for k, v in values.items()}
        if run is None:
            raise UsageError("name a new folder for the run (--run DIR) or one to resume.")
    built = _build(parser, sections, values)
    return FitArguments(run, resume, int(values["seed"]), built, overrides)


def shipped_configs(argv: Sequence[str]) -> list[str]:
    """The arguments with the path of a shipped configuration in place of its name.

    A file of that name in the working folder goes first; the ending .yaml may be left out.

    >>> [Path(a).name for a in shipped_configs(["--config", "digits", "--run", "digits"])]
    ['--config', 'digits.yaml', '--run', 'digits']
    """
    folder = Path(__file__).resolve().parents[1] / "configs"
    found = []
    for place, argument in enumerate(argv):
        head, given = "", argument
        if argument.startswith("--config="):
            head, _, given = argument.partition("=")
            head += "="
        if head or (place and argv[place - 1] == "--config"):
            own = folder / (given if given.endswith(".yaml") else f"{given}.yaml")
            if given and not Path(given).exists() and own.is_file():
                argument = f"{head}{own}"
        found.append(argument)
    return found


def _parser(prog: str, sections: Mapping[str, type], epilog: str) -> Any:
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Help(DefaultHelpFormatter):
        """Wide enough for the dotted names."""

        def __init__(self, prog: str, **kwargs: Any) -> None:
            super().__init__(prog, **{**kwargs, "max_help_position": 32, "width": 100})

    parser = ArgumentParser(
        prog=prog,
        usage=f"{prog} --data.samples SHEET --run DIR [--SECTION.OPTION VALUE ...]\n"
        f"       {prog} --resume RUN",
        description="Train a model into a run folder. Every option can also stand in a YAML file.",
        epilog=epilog,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=Help,
    )
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with options, or a shipped one's name; may be repeated, later ones win",
    )
    parser.add_argument("--run", metavar="DIR", type=str, help="folder of the new run")
    parser.add_argument(
        "--resume",
        metavar="RUN",
        type=str,
        help="go on with an interrupted run; of its options only these may change: "
        + ", ".join(RESUMABLE),
    )
    parser.add_argument("--seed", type=int, default=0, help="of data order and weights")
    for name, options in sections.items():
        parser.add_class_arguments(options, name)
    return parser


def _parse(parser: Any, argv: Sequence[str], *, defaults: bool) -> Any:
    try:
        return parser.parse_args(list(argv), defaults=defaults)
    except (argparse.ArgumentError, argparse.ArgumentTypeError, TypeError, ValueError) as error:
        raise UsageError(plain_message(str(error))) from None


def plain_message(text: str) -> str:
    """jsonargparse's message in one line and in the words of the command line.

    >>> plain_message('Parser key "model.d_model":\\n  Expected a <class \\'int\\'>. Got value: x')
    '--model.d_model: Expected int. Got value: x'
    """
    text = re.sub(r'Parser key "([\w.]+)":?', r"--\1:", text)
    text = re.sub(r'\b[Kk]ey "([\w.]+)"', r"--\1", text)
    text = re.sub(r"an? <class '([\w.]+)'>", r"\1", text)
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    return " ".join(text.split())


def _resumable(given: Any) -> dict[str, Any]:
    flat = {
        name: value
        for name, value in vars(given.as_flat()).items()
        if name not in ("resume", "config") and value is not None
    }
    if "run" in flat:
        raise UsageError("--run starts a new run and --resume goes on with one: give only one.")
    if given.get("config"):
        raise UsageError("--resume takes the run's own configuration; leave --config out.")
    for name in flat:
        if name not in RESUMABLE:
            raise UsageError(
                f"--{name} cannot change when a run is resumed; these can: {', '.join(RESUMABLE)}."
            )
    return flat


def _read_config(run: Path) -> dict[str, Any]:
    import yaml

    path = run / "config.yaml"
    if not path.is_file():
        what = "it holds no config.yaml" if run.is_dir() else "there is no such folder"
        raise UsageError(f"nothing to resume in {run}: {what}. Start a training with --run FOLDER.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} does not hold options.")
    return values


def _merged(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for name, value in overrides.items():
        section, key = name.split(".", 1)
        merged[section][key] = value
    return merged


def _build(parser: Any, sections: Mapping[str, type], values: dict[str, Any]) -> dict[str, Any]:
    try:
        checked = parser.parse_object(values)
    except (argparse.ArgumentError, argparse.ArgumentTypeError, TypeError, ValueError) as error:
        raise UsageError(plain_message(str(error))) from None
    return {name: options(**checked[name].as_dict()) for name, options in sections.items()}


def to_yaml(config: Mapping[str, Any]) -> str:
    """A configuration as YAML that ``--config`` reads back."""
    import yaml

    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
