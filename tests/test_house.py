"""The house keeps its own rules: layers, wheel, constraints, nothing private committed."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["mambakernels", "mambacore", "mambabio", "mambaaudio", "mambapipelines"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment with nothing but the built wheel unpacked in it; its Python."""
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    venv = [sys.executable, "-m", "venv", "--without-pip", str(out / "venv")]
    subprocess.run(venv, check=True)
    install = [sys.executable, "-m", "pip", "--python", str(out / "venv" / "bin" / "python")]
    install += ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return out / "venv" / "bin" / "python"


def test_bare_wheel_imports_all_packages(bare: Path, tmp_path: Path) -> None:
    code = "; ".join(f"import {name}" for name in PACKAGES)
    code += "; import sys; sys.exit('torch' in sys.modules)"
    subprocess.run([bare, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.parametrize("program", ["mambabio", "mambaaudio"])
def test_bare_wheel_shows_help(bare: Path, tmp_path: Path, program: str) -> None:
    command = [bare.parent / program, "--help"]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    assert "usage" in done.stdout.lower()
    assert not done.stderr
    # Under one second is the rule; the margin is for a loaded machine.
    assert seconds < 3


def test_wheel_ships_configs_and_no_tests(bare: Path) -> None:
    (wheel,) = bare.parents[2].glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith(".yaml") for name in names)
    assert not [name for name in names if "test" in name or "bench" in name]


def test_layers() -> None:
    """pipelines > mambabio | mambaaudio > core > kernels."""
    tool = Path(sys.executable).parent / "lint-imports"
    if not tool.exists():
        pytest.skip("import-linter is not installed (it is in the extra `dev`)")
    done = subprocess.run([tool], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_only_pipelines_imports_lightning() -> None:
    for folder in ["kernels", "core", "mambabio", "mambaaudio"]:
        for file in (ROOT / folder).rglob("*.py"):
            assert not re.search(
                r"^\s*(import|from) (pytorch_)?lightning", file.read_text(), re.M
            ), file


def test_top_level_folders_are_not_importable() -> None:
    """A package named `kernels` at the top was seen to break other libraries."""
    for folder in ["core", "kernels", "pipelines", "mambabio", "mambaaudio", "tests"]:
        assert not (ROOT / folder / "__init__.py").exists()


def _requirement(text: str) -> str:
    return re.split(r"[\[<>=;~! ]", text, maxsplit=1)[0].lower().replace("_", "-")


def test_constraints_cover_every_requirement() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {_requirement(text) for text in project["dependencies"]}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {_requirement(line) for line in lines if line and not line.startswith("#")}
    assert wanted <= pinned


def test_no_absolute_paths_are_committed() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode != 0:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"/(home|root|work|Users)/\w")
    for name in files.stdout.splitlines():
        path = ROOT / name
        if not path.is_file() or path.suffix in {".png", ".safetensors"} or path == Path(__file__):
            continue
        found = pattern.search(path.read_text(errors="replace"))
        assert not found, f"{name}: {found}"
