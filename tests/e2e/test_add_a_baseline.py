"""docs/add_a_baseline.md, followed word by word in a copy of the project."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile

import pandas as pd
import pytest

from tests.projects import QUICK, copy_of_results, snakemake
from tests.toys import ROOT

GUIDE = (ROOT / "docs" / "add_a_baseline.md").read_text()
WITH_IT = QUICK.removesuffix("}") + ", absolute_error: {settings: {iterations: 40}}}"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


FILE, LINE, ENTRY_POINT = blocks("python")[0], blocks("yaml")[0], blocks("toml")[0]
(RULE,) = re.findall(r"```\n(use rule.*?)```", GUIDE, re.DOTALL)


def append(path, text):
    path.write_text(path.read_text() + "\n\n" + text)


def configure(folder):
    path = folder / "workflow/config/digits.yaml"
    path.write_text(path.read_text().replace("methods:\n", "methods:\n" + LINE))


def rows(folder) -> pd.DataFrame:
    runs = pd.read_csv(folder / "results/digits/runs.csv")
    return runs[runs.method == "absolute_error"]


def wheel(folder):
    """A package with the method and its entry point, built without a build tool: there may be no network."""
    ((group, points),) = tomllib.loads(ENTRY_POINT)["project"]["entry-points"].items()
    lines = "".join(f"{name} = {target}\n" for name, target in points.items())
    info = "my_package-1.0.dist-info"
    files = {
        "my_package/__init__.py": "",
        "my_package/absolute_error.py": FILE,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[{group}]\n{lines}",
    }
    path = folder / "my_package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
    return path


@pytest.fixture
def folder(project, tmp_path):
    return copy_of_results(project, tmp_path / "project")


def test_the_guide_adds_a_row(folder):
    (path,) = re.findall(r"`(baselines/\w+\.py)`:", GUIDE)
    (folder / path).write_text(FILE)
    append(folder / "workflow/rules/quantize.smk", RULE)
    configure(folder)
    done = snakemake(folder, "all", "--config", WITH_IT)
    assert done.returncode == 0, done.stderr
    assert "rule train" not in done.stderr and "rule ptmq" not in done.stderr, "only what is new is computed"
    table = (folder / "results/digits/tables/accuracy.md").read_text()
    assert re.search(r"\| digits_resnet \| absolute_error \| default \| \d+\.\d\d \| \d+\.\d\d \|", table), table
    assert set(rows(folder).w_bits) == {3, 4} and set(rows(folder).protocol_iterations) == {40}


def test_a_method_of_another_package_adds_a_row(folder, tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, wheel(tmp_path)]
    subprocess.run(install, check=True, capture_output=True)
    append(folder / "workflow/rules/quantize.smk", RULE)
    configure(folder)
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = snakemake(folder, "all", "--config", WITH_IT, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert set(rows(folder).status) == {"done"} and len(rows(folder)) == 2
    missing = snakemake(folder, "-n", "all", "--config", WITH_IT, "seeds=[1]")
    assert "method 'absolute_error' is unknown" in missing.stdout + missing.stderr, "without the package"
