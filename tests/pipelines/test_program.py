"""What both command lines promise: exit codes, one-line errors, quiet pipes, fast help."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from mambacore.errors import DataError, UsageError
from mambapipelines.cli import audio, bio
from mambapipelines.cli.program import Program, Verb, run
from mambapipelines.interrupt import Interrupted


def failing(error: BaseException) -> Program:
    """A program whose only verb raises."""
    module = type(sys)("failing_verb")

    def main(argv, prog):
        raise error

    module.main = main  # pyright: ignore
    sys.modules["failing_verb"] = module
    return Program("mambatest", "For tests.", (Verb("fail", "failing_verb", "fails"),))


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DataError("x.fa, record r1: empty"), 1, "error: x.fa, record r1: empty"),
        (UsageError("--window is 3"), 2, "error: --window is 3"),
        (Interrupted(signal.SIGINT, "saved"), 130, "saved"),
        (Interrupted(signal.SIGTERM), 143, "interrupted"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "out.tsv"), 1, "out.tsv: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "/x: Permission denied"),
        (MemoryError(), 1, "out of memory"),
    ],
)
def test_errors_are_one_line_with_their_code(capsys, error, code, text):
    assert run(failing(error), ["fail"]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert text in shown.err
    assert "Traceback" not in shown.err
    assert shown.err.startswith("mambatest fail: ")
    assert len(shown.err.splitlines()) == (2 if code == 2 else 1)


def test_debug_and_bugs_show_a_traceback(capsys):
    assert run(failing(DataError("bad")), ["fail", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert run(failing(ZeroDivisionError("a bug")), ["fail"]) == 1
    shown = capsys.readouterr().err
    assert shown.count("Traceback") == 1
    assert "this is a bug" in shown


def test_a_signal_interrupts_a_verb(capsys):
    module = type(sys)("killing_verb")

    def main(argv, prog):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    module.main = main  # pyright: ignore
    sys.modules["killing_verb"] = module
    before = signal.getsignal(signal.SIGTERM)
    program = Program("mambatest", "For tests.", (Verb("kill", "killing_verb", "dies"),))
    assert run(program, ["kill"]) == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("program", [bio.main, audio.main])
def test_help_version_and_no_verb(program, capsys):
    assert program(["--help"]) == 0
    shown = capsys.readouterr()
    assert "usage" in shown.out
    assert shown.err == ""
    assert program(["--version"]) == 0
    assert capsys.readouterr().out.count(".") >= 1
    assert program([]) == 2
    assert capsys.readouterr().out == ""


def test_an_unknown_verb_names_the_nearest(capsys):
    assert bio.main(["clasify"]) == 2
    assert "Did you mean classify?" in capsys.readouterr().err
    assert bio.main(["--wrong"]) == 2


@pytest.mark.parametrize("name", [verb.name for verb in bio.PROGRAM.verbs])
def test_every_verb_has_help(name, capsys):
    assert bio.main([name, "--help"]) == 0
    assert f"usage: mambabio {name}" in capsys.readouterr().out


def test_help_is_fast_and_imports_no_torch():
    code = (
        "import sys; from mambapipelines.cli.bio import main; assert main(sys.argv[1:]) == 0;"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    )
    for arguments, limit in (
        (["--help"], 1.0),
        (["fit", "--help"], 2.0),
        (["classify", "--help"], 1.0),
    ):
        best = float("inf")
        for _ in range(3):
            start = time.process_time(), os.times()
            subprocess.run(
                [sys.executable, "-c", code, *arguments], check=True, capture_output=True
            )
            after = os.times()
            used = after.children_user + after.children_system
            best = min(best, used - start[1].children_user - start[1].children_system)
        assert best < limit, f"{arguments} took {best:.2f} s of CPU time"


def test_a_closed_pipe_ends_quietly():
    """`mambabio ... | head -0` must not end in a BrokenPipeError."""
    code = (
        "import sys; from mambapipelines.cli.program import *;"
        "sys.modules['v'] = m = type(sys)('v');"
        "m.main = lambda a, p: [print('x' * 100) for _ in range(10000)] and 0;"
        "sys.exit(run(Program('t', 'd', (Verb('v', 'v', 's'),)), ['v']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 0
