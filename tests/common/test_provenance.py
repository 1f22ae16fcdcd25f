"""The code that a result depends on is found from the imports: all that runs, and no more."""

import subprocess
import sys
from pathlib import Path

import pytest

from ptmq.common import provenance
from tests.toys import ROOT

LOADED = """
import sys
import {entries}
for name, module in list(sys.modules.items()):
    if getattr(module, "__file__", None):
        print(name, module.__file__, sep="\\t")
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project in the place of this one: a chain of three modules, and one beside it."""
    for name, text in {
        "ptmq/__init__.py": "",
        "ptmq/top.py": "import json\nfrom ptmq.room import middle\n",
        "ptmq/room/__init__.py": "",
        "ptmq/room/middle.py": "def late():\n    import ptmq.room.bottom\n",
        "ptmq/room/bottom.py": "x = 1\n",
        "ptmq/other.py": "import ptmq.top\n",
        "scripts/one.py": "from two import f\nimport ptmq.room.bottom\n",
        "scripts/two.py": "def f(): ...\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    """Files are read once a process; here they change."""
    provenance.imported_by.cache_clear()
    provenance.code_sha256.cache_clear()


def names(files: list[Path], root: Path) -> set[str]:
    return {file.relative_to(root).as_posix() for file in files}


def test_a_closure_follows_imports_wherever_they_stand(project):
    chain = {"ptmq/__init__.py", "ptmq/room/__init__.py", "ptmq/room/middle.py", "ptmq/room/bottom.py"}
    assert names(provenance.closure("ptmq.top"), project) == chain | {"ptmq/top.py"}
    assert names(provenance.closure("ptmq.room.middle"), project) == chain
    assert provenance.closure("torch.nn") == []


def test_a_script_finds_its_neighbours(project):
    found = names(provenance.closure(project / "scripts/one.py"), project)
    assert {"scripts/one.py", "scripts/two.py", "ptmq/room/bottom.py"} <= found


@pytest.mark.parametrize("changed, same", [
    ("ptmq/room/bottom.py", False), ("ptmq/room/__init__.py", False), ("ptmq/top.py", False), ("ptmq/other.py", True),
])  # fmt: skip
def test_the_hash_changes_with_what_is_imported_and_nothing_else(project, changed, same):
    before = provenance.code_sha256("ptmq.top")
    (project / changed).write_text("x = 2\n")
    forget()
    assert (provenance.code_sha256("ptmq.top") == before) is same


def test_a_broken_file_is_part_of_the_hash(project):
    (project / "ptmq/room/bottom.py").write_text("def (:")
    broken = provenance.code_sha256("ptmq.top")
    (project / "ptmq/room/bottom.py").write_text("def ((:")
    forget()
    assert provenance.code_sha256("ptmq.top") != broken


def test_the_closure_of_the_stages_holds_every_file_that_importing_them_loads():
    entries = [
        "ptmq.suite.calibration",
        "ptmq.suite.evaluation",
        "ptmq.suite.frontier",
        "ptmq.suite.bench.cases",
        "ptmq.cli",
    ]
    code = LOADED.format(entries=", ".join(entries))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = dict(line.split("\t") for line in done.stdout.splitlines())
    loaded = {Path(file) for name, file in modules.items() if name.split(".")[0] in provenance.PACKAGES}
    assert len(loaded) > 30 and loaded <= set(provenance.closure(*entries))
    assert not {"snakemake", "mlflow", "pandas", "matplotlib"} & set(modules), "the library stands alone"


def test_fingerprints_tell_content_apart_and_not_its_order():
    assert provenance.fingerprint({"a": 1, "b": [2]}) == provenance.fingerprint({"b": [2], "a": 1})
    assert provenance.fingerprint({"a": 1}) != provenance.fingerprint({"a": 2})


def test_a_commit_is_marked_where_the_code_differs(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path)]
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    commit = provenance.commit.__wrapped__
    assert commit() == "unknown"
    (tmp_path / "ptmq").mkdir()
    (tmp_path / "ptmq/a.py").write_text("x = 1\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *command], check=True)
    clean = commit()
    (tmp_path / "notes.txt").write_text("no code")
    assert commit() == clean and len(clean) == 12
    (tmp_path / "ptmq/a.py").write_text("x = 2\n")
    assert commit() == f"{clean}+"
