"""The package's face: lazy, complete, and its examples run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mambacore

EXAMPLES = Path(__file__).resolve().parents[2] / "core" / "examples"
MODULES = [info.name for info in pkgutil.walk_packages(mambacore.__path__, prefix="mambacore.")]


def test_importing_does_not_import_torch() -> None:
    code = "import sys, mambacore, mambacore.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there() -> None:
    for name in mambacore.__all__:
        assert getattr(mambacore, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Mamba3'"):
        _ = mambacore.Mamba3


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    torch.manual_seed(0)
    outcome = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert outcome.failed == 0


def test_the_byte_level_example_learns_and_generates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(EXAMPLES / "byte_lm.py"))["main"]
    first, last = main(["--steps", "14", "--save", str(tmp_path / "model"), "--bytes", "20"])
    assert first > 5  # close to 8 bits a byte before anything is learnt
    assert last < first - 2
    assert "bits a byte" in capsys.readouterr().err
    assert mambacore.from_pretrained(tmp_path / "model").vocab_size == 256
