"""Fixtures that every test folder shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is no GPU."""
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes never stand in a test's name: gzip's hold the time, and workers would disagree."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real DNA and audio, beside the checkout; absent outside development."""
    path = Path(os.environ.get("MAMBAKIT_TEST_DATA", SHARED_DATA))
    if not path.is_dir():
        pytest.skip(f"real data not found at {path} (set MAMBAKIT_TEST_DATA)")
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of sequence files go to a folder of the test run, never to the user's."""
    monkeypatch.setenv("MAMBAKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
