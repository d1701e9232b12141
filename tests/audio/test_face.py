"""The package's face: lazy, complete, and its examples run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest
import torch

import mambaaudio

MODULES = [info.name for info in pkgutil.walk_packages(mambaaudio.__path__, "mambaaudio.")]


def test_importing_does_not_import_torch() -> None:
    code = "import sys, mambaaudio, mambaaudio.corpus, mambaaudio.windows"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there() -> None:
    for name in mambaaudio.__all__:
        assert getattr(mambaaudio, name) is not None


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    torch.manual_seed(0)
    outcome = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert outcome.failed == 0
