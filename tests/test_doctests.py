"""The examples in docstrings give what stands below them."""

import doctest
import importlib

import pytest

from tests.toys import ROOT

PLACES = ("ptmq/**/*.py", "baselines/*.py", "workflow/scripts/*.py")
FILES = [path for pattern in PLACES for path in ROOT.glob(pattern) if ">>> " in path.read_text()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_examples_of_a_module(path, monkeypatch):
    inside = path.relative_to(ROOT).with_suffix("").parts
    if inside[0] == "workflow":  # scripts, which import one another by their names alone
        monkeypatch.syspath_prepend(path.parent)
    module = importlib.import_module(inside[-1] if inside[0] == "workflow" else ".".join(inside))
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
