"""``mambaaudio info``: what sound files, or a model, say of themselves."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..arguments import Parser


def main(argv: list[str], prog: str) -> int:
    """Describe; returns the exit code."""
    parser = Parser(
        prog,
        "Read the headers of sound files (TSV), or describe a model or run folder. A file that "
        "cannot be read is named on standard error, and the exit code is 1.",
    )
    parser.add_argument("paths", nargs="+", metavar="FILE", help="sound files; or one model folder")
    parser.add_argument(
        "--verify", action="store_true", help="decode every file to its end, not the header alone"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of TSV")
    arguments = parser.parse_args(argv)
    if Path(arguments.paths[0]).is_dir():
        from mambacore.errors import UsageError

        if len(arguments.paths) > 1:
            raise UsageError("describe one model or run folder at a time.")
        return _model(arguments.paths[0], as_json=arguments.json)
    return _files(arguments.paths, verify=arguments.verify, as_json=arguments.json)


def _files(paths: list[str], *, verify: bool, as_json: bool) -> int:
    from mambaaudio.info import FileInfo, file_info
    from mambacore.errors import DataError

    if not as_json:
        print(FileInfo.header())
    found, bad = [], 0
    for path in paths:
        try:
            info = file_info(path, verify=verify)
        except DataError as error:
            bad += 1
            print(f"mambaaudio info: error: {error}", file=sys.stderr)
            continue
        found.append(asdict(info))
        if not as_json:
            print(info.row())
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    return 1 if bad else 0


def _model(folder: str, *, as_json: bool) -> int:
    from mambaaudio.info import describe

    facts = describe(folder)
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        for name, value in facts.items():
            print(f"{name}: {_text(value)}")
    return 0


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "".join(f"\n  {name}: {_text(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return ", ".join(str(entry) for entry in value) or "none"
    return str(value)
