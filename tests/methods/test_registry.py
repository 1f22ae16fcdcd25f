"""The registry: a name is given once, a broken plug-in leaves the others, a method's code is its own and its parents'."""

import importlib
import sys

import pytest

from ptmq.common import provenance
from ptmq.common.errors import InputError
from ptmq.methods import interface
from ptmq.methods.interface import METHODS, create, discover, method_file
from tests.toys import W3

discover()


def test_a_broken_plug_in_leaves_the_others(monkeypatch):
    monkeypatch.setattr(interface, "BROKEN", {"baselines.mine": "SyntaxError: invalid syntax (mine.py, line 1)"})
    assert create("nearest_mse", {}, [W3]).name == "nearest_mse"
    with pytest.raises(InputError, match="method 'mine' is unknown, and these modules could not be imported: .*line 1"):
        create("mine", {}, [W3])


def test_an_unknown_name_is_said_with_the_way_out():
    with pytest.raises(InputError, match="method 'qdorp' is unknown. Did you mean 'qdrop'.* decorated with @register"):
        create("qdorp", {}, [W3])


def test_a_name_is_given_once():
    class Other(METHODS["qdrop"]):
        name = "qdrop"

    with pytest.raises(InputError, match="'qdrop' is registered already, by baselines.qdrop. Give yours another name"):
        interface.register(Other)
    assert interface.register(METHODS["qdrop"]) is METHODS["qdrop"], "the same class again is no clash"


def test_methods_are_found_where_entry_points_name_them(tmp_path, monkeypatch):
    (tmp_path / "other_package.py").write_text(
        "from baselines.qdrop import QDrop\nfrom ptmq.methods.interface import register\n\n\n"
        "@register\nclass Mine(QDrop):\n    name = 'mine'\n"
    )
    info = tmp_path / "other_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[ptmq.methods]\nmine = other_package\nabsent = no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(interface, "METHODS", dict(METHODS))
    monkeypatch.setattr(interface, "BROKEN", {})
    found = discover.__wrapped__()
    assert method_file(found["mine"]) == tmp_path / "other_package.py"
    assert list(interface.BROKEN) == ["absent (no_such_package)"], "and what fails is told"


def test_the_code_of_a_method_is_its_own_file_and_what_that_imports(tmp_path, monkeypatch):
    """A checkpoint of other code is never continued, the parent's included."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "child_of_a_method.py").write_text(
        "from baselines.qdrop import QDrop\n\n\nclass Child(QDrop):\n    name = 'child'\n"
    )
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "child_of_a_method", raising=False)
    path = method_file(importlib.import_module("child_of_a_method").Child)
    closure = provenance.closure(path)
    assert path in closure and method_file(METHODS["qdrop"]) in closure
    assert method_file(METHODS["brecq"]) not in closure
    assert provenance.code_sha256(path) != provenance.code_sha256(method_file(METHODS["qdrop"]))


def test_no_method_depends_on_another_baseline_and_no_room_on_one():
    files = {name: method_file(method) for name, method in METHODS.items()}
    for name, path in files.items():
        others = {other for other in files.values() if other != path and other.parent.name == "baselines"}
        assert not others & set(provenance.closure(path)), name
    for entry in ("ptmq.suite.calibration", "ptmq.suite.evaluation", "ptmq.cli"):
        assert not [
            path for path in provenance.closure(entry) if path.parent.name == "baselines" and path.stem[0] != "_"
        ]
