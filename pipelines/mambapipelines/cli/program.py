"""What both command lines share: verbs, exit codes, errors as one line, quiet pipes.

Nothing heavy is imported here: a verb's module is imported when the verb is used.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from mambacore.errors import DataError, UsageError

from ..interrupt import Interrupted, raising

DONE, BAD_DATA, BAD_USAGE = 0, 1, 2


@dataclass(frozen=True)
class Verb:
    """One verb: `module` (importable, with ``main(argv, prog) -> int``) and a line of help."""

    name: str
    module: str
    summary: str


@dataclass(frozen=True)
class Program:
    """A command line: its name, what it is for, its verbs and a closing remark for the help."""

    name: str
    description: str
    verbs: tuple[Verb, ...]
    epilog: str = ""

    def help(self) -> str:
        """The text of ``--help``."""
        width = max((len(verb.name) for verb in self.verbs), default=0)
        lines = [f"usage: {self.name} [--help] [--version] VERB ...", "", self.description, ""]
        if self.verbs:
            lines += ["verbs:"]
            lines += [f"  {verb.name:<{width}}  {verb.summary}" for verb in self.verbs]
            lines += ["", f"`{self.name} VERB --help` lists the options of a verb."]
        lines += [
            "With every verb: --debug shows the traceback of an error.",
            "Exit codes: 0 done, 1 bad data, 2 bad usage, 130 Ctrl-C, 143 SIGTERM.",
        ]
        if self.epilog:
            lines += ["", self.epilog]
        return "\n".join(lines) + "\n"

    def find(self, name: str) -> Verb:
        """The verb of that name, or a `UsageError` that names the nearest one."""
        names = [verb.name for verb in self.verbs]
        if name in names:
            return self.verbs[names.index(name)]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(
            f"{name!r} is not a verb of {self.name}; it has {', '.join(names) or 'none yet'}.{hint}"
        )


def run(program: Program, argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; nothing but a bug is ever raised or traced.

    Args:
        program: the verbs.
        argv: the arguments without the program's name; ``sys.argv[1:]`` by default.
    """
    arguments, debug = _without_flag(list(sys.argv[1:] if argv is None else argv), "--debug")
    prog = program.name
    try:
        with raising():
            if not arguments:
                sys.stderr.write(program.help())
                return BAD_USAGE
            first, *rest = arguments
            if first in ("-h", "--help", "help"):
                sys.stdout.write(program.help())
                return DONE
            if first == "--version":
                sys.stdout.write(f"{program.name} {_version()}\n")
                return DONE
            if first.startswith("-"):
                raise UsageError(f"{first!r} is not an option; a verb comes first.")
            verb = program.find(first)
            prog = f"{program.name} {verb.name}"
            code = importlib.import_module(verb.module).main(rest, prog)
            sys.stdout.flush()
            return code
    except SystemExit as stop:  # argparse's own --help
        return stop.code if isinstance(stop.code, int) else DONE
    except BaseException as error:
        return report(error, prog, debug)


def report(error: BaseException, prog: str, debug: bool) -> int:
    """One line on standard error for what the user can mend, a traceback for a bug; the code."""
    if _is_closed_pipe(error):
        # The interpreter flushes standard output once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    if debug:
        traceback.print_exception(error)
    code, message = _explain(error)
    if isinstance(error, Interrupted) and os.environ.get("LOCAL_RANK", "0") != "0":
        return code  # rank 0 says it
    if message is None:
        if not debug:
            traceback.print_exception(error)
        message = "this is a bug in mambakit, please report it with the lines above"
    if message:
        lines = message.strip().splitlines()
        text = " ".join(line.strip() for line in lines) if code != DONE else message
        sys.stderr.write(f"{prog}: {text}\n")
        if code == BAD_USAGE and " " in prog:
            sys.stderr.write(f"(see {prog} --help)\n")
    return code


def _explain(error: BaseException) -> tuple[int, str | None]:
    if isinstance(error, Interrupted):
        return error.code, error.note or "interrupted"
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, DataError) and not str(error):
        return BAD_DATA, ""  # another process says it
    if isinstance(error, DataError):
        return BAD_DATA, f"error: {error}"
    if isinstance(error, UsageError):
        return BAD_USAGE, f"error: {error}"
    if isinstance(error, MemoryError):
        return BAD_DATA, "error: out of memory; use shorter windows or smaller batches."
    if isinstance(error, OSError) and error.strerror:
        return BAD_DATA, f"error: {_os_message(error)}"
    kind = type(error).__name__
    # Named, not imported: the classes live in torch, Lightning and the kernels.
    if kind == "OutOfMemoryError":
        first = str(error).split(". ")[0]
        return BAD_DATA, f"error: {first}. Use smaller batches or a smaller model."
    if kind in ("MisconfigurationException", "BackendUnavailable"):
        return BAD_USAGE, f"error: {error}"
    return BAD_DATA, None


def _os_message(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    hint = {
        errno.ENOSPC: " Nothing was half-written: free some space and run the command again.",
        errno.EACCES: " Choose a place that you may write to, or read a file that you may read.",
        errno.EROFS: " Choose a place that can be written.",
        errno.ENOENT: " Check the path.",
    }.get(error.errno or 0, "")
    return f"{where}{error.strerror}.{hint}"


def _is_closed_pipe(error: BaseException) -> bool:
    return isinstance(error, BrokenPipeError) and error.filename is None


def _without_flag(arguments: list[str], flag: str) -> tuple[list[str], bool]:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [a for a in arguments[:end] if a != flag]
    return kept + arguments[end:], len(kept) < end


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mambakit")
    except PackageNotFoundError:
        return "unknown (mambakit is not installed)"
