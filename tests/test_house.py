"""The house: rooms are small, files are short, imports point downwards, and every room has its tests."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.toys import ROOT

FOLDERS = sorted(path.parent for path in (ROOT / "ptmq").rglob("__init__.py"))
ROOMS = [folder for folder in FOLDERS if folder.parent == ROOT / "ptmq"]
CODE = [ROOT / "Snakefile"] + [
    path
    for folder in ("ptmq", "baselines", "workflow", "tests")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".smk")
]
LAYERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_folder_has_few_files(folder):
    files = [path.name for path in folder.glob("*.py")]
    assert len(files) <= 8, f"{folder.name} has {len(files)} files. Split what it knows in two"


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: path.name)
def test_a_room_has_a_floor_and_tests_of_its_own(room):
    assert f"ptmq.{room.name}" in [layer.strip("()") for layer in LAYERS]
    assert list((ROOT / "tests" / room.name).glob("test_*.py")), f"tests/{room.name} has no test"


def test_no_file_is_long():
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in CODE}
    assert len(lengths) > 100 and {path: count for path, count in lengths.items() if count > 400} == {}


def test_every_module_says_what_it_is_for():
    silent = [path for path in CODE if path.suffix == ".py" and not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


# ---------------------------------------------------------------- imports
@pytest.fixture
def copy(tmp_path) -> Path:
    """The packages and the contract of their imports."""
    for name in ("ptmq", "baselines"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_imports_point_downwards(copy):
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("below, above", [
    ("ptmq/common/bits.py", "ptmq.quantization.step_size"),
    ("ptmq/network/model.py", "ptmq.reconstruction.engine"),
    ("ptmq/methods/interface.py", "ptmq.suite.profile"),
    ("ptmq/suite/profile.py", "ptmq.cli"),
    ("ptmq/suite/calibration.py", "baselines.qdrop"),
])  # fmt: skip
def test_an_upward_import_is_refused(copy, below, above):
    path = copy / below
    path.write_text(f"{path.read_text()}\n\ndef late():\n    import {above}\n")
    done = lint_imports(copy)
    importer = below.removesuffix(".py").replace("/", ".")
    assert done.returncode == 1 and re.search(rf"{importer}\s*->\s*{above}", done.stdout), done.stdout + done.stderr
