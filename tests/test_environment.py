"""One set of versions everywhere."""

import re
import tomllib
from importlib.metadata import version

import yaml

from tests.toys import ROOT


def pins_of_pyproject() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [pin for group in project["optional-dependencies"].values() for pin in group]
    return dict(pin.split("==") for pin in project["dependencies"] + optional)


def pins_of_conda() -> dict[str, str]:
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pins = dict(re.fullmatch(r"([\w-]+)=([\d.]+)", pin).groups() for pin in conda if "=" in pin)
    pins.pop("python")
    return pins | dict(pin.split("==") for pin in pip["pip"])


def test_conda_and_pip_agree():
    assert pins_of_conda() == pins_of_pyproject()


def test_the_citation_is_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"] and citation["license"] == project["license"]
    assert f"## [{citation['version']}] - {citation['date-released']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_installed_versions_are_the_pinned_ones():
    assert {name: version(name) for name in pins_of_pyproject()} == pins_of_pyproject()
