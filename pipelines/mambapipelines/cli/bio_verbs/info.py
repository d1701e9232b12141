"""``mambabio info``: what a model is, or what this installation can do."""

from __future__ import annotations

import json
from typing import Any

from ..arguments import Parser


def main(argv: list[str], prog: str) -> int:
    """Describe; returns the exit code."""
    parser = Parser(
        prog, "Describe a model or a run; without one, the installation: versions, backends, cache."
    )
    parser.add_argument("model", nargs="?", metavar="FOLDER", help="a run or model folder")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args(argv)
    facts = _installation() if arguments.model is None else _model(arguments.model)
    if arguments.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        for name, value in facts.items():
            print(f"{name}: {_text(value)}")
    return 0


def _model(folder: str) -> dict[str, Any]:
    from mambabio.info import describe

    return describe(folder)


def _installation() -> dict[str, Any]:
    from mambacore.cache import default_cache_dir
    from mambakernels.backends import available_backends

    from ... import environment

    facts = environment.describe()
    return {
        "packages": facts["packages"],
        "python": facts["python"],
        "hardware": facts["hardware"],
        "backends": available_backends(),
        "cache": str(default_cache_dir()),
    }


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "".join(f"\n  {name}: {_text(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return ", ".join(_inline(entry) for entry in value) or "none"
    return _inline(value)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(_inline(entry) for entry in value.values())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
