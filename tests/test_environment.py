"""One set of versions everywhere, and light imports."""

import re
import subprocess
import sys
import tomllib

import yaml
from conftest import ROOT


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


def test_the_installed_versions_are_the_pinned_ones():
    from importlib.metadata import version

    assert {name: version(name) for name in pins_of_pyproject()} == pins_of_pyproject()


def imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_library_needs_neither_snakemake_nor_mlflow():
    loaded = imported_by(
        "import ptmq.cli, ptmq.suite.calibration, ptmq.suite.evaluation, ptmq.training.trainer, ptmq.suite.bench"
    )
    assert not loaded & {"snakemake", "mlflow", "pandas", "matplotlib"}


def test_the_workflow_reads_profiles_without_torch():
    assert not imported_by("import ptmq.suite.profile, ptmq.models.backbones") & {"torch", "timm", "torchvision"}
