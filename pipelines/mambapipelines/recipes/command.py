"""``python -m mambapipelines recipe NAME``: options, configuration, the run, its output."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mambacore.errors import UsageError

from .. import environment
from ..cli.arguments import Parser, device_of
from ..cli.fit_parser import plain_message, to_yaml
from ..cli.program import Program, Verb
from ..cli.program import run as run_program
from ..options import as_dict
from ..progress import duration
from . import RECIPES, find
from .results import Context

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "recipes"
_PROG = "python -m mambapipelines recipe"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe, or list them all; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        width = max(len(recipe.name) for recipe in RECIPES)
        for recipe in RECIPES:
            print(f"{recipe.name:<{width}}  {recipe.summary}")
        return 0
    verbs = tuple(Verb(recipe.name, __name__ + "_verb", recipe.summary) for recipe in RECIPES)
    description = "Reproduce a result: each recipe writes its table, figure and records into --out."
    return run_program(Program(_PROG, description, verbs), arguments)


def load_config(name: str, *, small: bool = False, overrides: Sequence[str] = ()) -> Any:
    """The configuration of a recipe, as its module's `Config`.

    Args:
        name: of the recipe.
        small: with the changes that make it run in seconds.
        overrides: ``--section.option value ...`` and ``--config FILE``; later ones win.

    Raises:
        UsageError: an unknown key or a value that is not accepted.
    """
    from jsonargparse import ArgumentParser

    config = importlib.import_module(find(name).module).Config
    parser = ArgumentParser(
        prog=f"{_PROG} {name}", exit_on_error=False, allow_abbrev=False, add_help=False
    )
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(config)
    files = [CONFIGS / f"{name}.yaml"]
    if small:
        files.append(CONFIGS / "small" / f"{name}.yaml")
    given = [word for file in files for word in ("--config", str(file))]
    try:
        values = parser.parse_args([*given, *overrides])
        values.pop("config", None)
        # The newer name first: the older one warns where both exist.
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        built = vars(instantiate(values))
    except (argparse.ArgumentError, argparse.ArgumentTypeError, TypeError, ValueError) as error:
        raise UsageError(plain_message(str(error))) from None
    return config(**built)


def run_recipe(argv: Sequence[str], name: str, prog: str) -> int:
    """Run the recipe `name` with the arguments after its name; returns the exit code."""
    parser = _parser(name, prog)
    arguments, overrides = parser.parse_known_args(list(argv))
    config = load_config(name, small=arguments.small, overrides=overrides)
    if arguments.print_config:
        print(to_yaml(as_dict(config)), end="")
        return 0
    out = Path(arguments.out or Path("results") / name)
    if (out / "results.json").exists():
        raise UsageError(f"--out {out} already holds results; name another folder or remove it.")
    device = device_of(arguments)
    out.mkdir(parents=True, exist_ok=True)
    context = Context(
        out=out,
        device=device,
        data=Path(arguments.data).expanduser() if arguments.data else None,
        say=_say,
    )
    command = [*_PROG.split(), name, *argv]
    context.write_environment({**environment.describe(command), "config": as_dict(config)})
    start = time.perf_counter()
    result = importlib.import_module(find(name).module).run(config, context)
    seconds = time.perf_counter() - start
    context.write(result, seconds)
    _say(f"{name}: {duration(seconds)}; results in {out}")
    print(result.markdown)
    return 0


def _parser(name: str, prog: str) -> Parser:
    recipe = find(name)
    parser = Parser(
        prog,
        f"{recipe.summary}. Every value of the configuration can be changed by a dotted option "
        "(--training.steps 100) or by --config FILE.",
    )
    parser.add_argument("--out", metavar="DIR", help=f"where to (default: results/{name})")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if any)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--data", metavar="DIR", help="folder of the public data, where needed")
    parser.add_argument(
        "--small", action="store_true", help="a version that runs in seconds on a CPU"
    )
    parser.add_argument("--print_config", action="store_true", help="show the values and stop")
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
