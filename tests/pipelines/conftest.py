"""A trained run that several test files read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from bio_cli import SMALL, make_sheet


@pytest.fixture(scope="session")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labels that differ in composition."""
    return make_sheet(tmp_path_factory.mktemp("sequences"))


@pytest.fixture(scope="session")
def trained(sheet: Path) -> Path:
    """A finished run on it, made by the command line."""
    from mambapipelines.cli import bio

    run = sheet.parent / "trained"
    assert bio.main(["fit", "--data.samples", str(sheet), "--run", str(run), *SMALL]) == 0
    return run
