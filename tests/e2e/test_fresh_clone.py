"""What a user does first, in a fresh clone without data: the README's run, the guide's baseline, a job that fails."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.projects import PROJECT, planned, snakemake
from tests.toys import ROOT

GUIDE = (ROOT / "docs/add_a_baseline.md").read_text()
NO_NETWORK = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}  # nothing listens there
COMPUTING = {"data", "train", "weights", "fp32", "evaluate", "mixed"}  # rules, beside one a method


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The project as it is, with its published results and nothing else, all of it committed."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    folder.mkdir()
    for name in (*PROJECT, ".gitignore"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "results/published", folder / "results/published")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "clone")
    return folder


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    for name in ("PTMQ_DATA_DIR", "PTMQ_WEIGHTS_DIR"):
        monkeypatch.delenv(name, raising=False)


def of_the_readme() -> list[str]:
    """The README's command for one method on one network of CIFAR-10, from its first target on."""
    (line,) = re.findall(r"^snakemake .*cifar10.*only=.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    words = shlex.split(line)
    return words[words.index("all") :]


def jobs(done: subprocess.CompletedProcess) -> dict[str, int]:
    """How many jobs of which rule a dry run counts."""
    assert done.returncode == 0, done.stdout + done.stderr
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE)}


def test_the_readmes_run_fetches_data_and_weights_first(clone):
    done = snakemake(clone, "-n", *of_the_readme())
    counted = jobs(done)
    assert counted["data"] == counted["weights"] == counted["fp32"] == 1
    assert counted["qdrop"] == counted["evaluate"] == 5, "one a width"
    assert not {"ptmq", "adaround", "train", "mixed"} & set(counted)
    assert planned(done)["data"] == planned(done)["weights"] == {"Missing output files"}


MODULE = """
configfile: "{clone}/workflow/config/cifar10.yaml"

module ptmq:
    snakefile: "{clone}/Snakefile"
    config: config

use rule * from ptmq as ptmq_*

rule mine:
    default_target: True
    input:
        rules.ptmq_all.input
"""


def test_it_runs_in_another_folder_and_as_a_module_of_another_workflow(clone, tmp_path):
    """The same jobs, and nothing is written to the project."""
    expected = jobs(snakemake(clone, "-n", *of_the_readme()))
    before = git(clone, "status", "--porcelain", "--ignored")
    words = [str(clone / word) if word.endswith(".yaml") else word for word in of_the_readme()]
    there = snakemake(tmp_path, "-n", "--snakefile", str(clone / "Snakefile"), "--directory", str(tmp_path), *words)
    assert jobs(there) == expected
    (tmp_path / "Snakefile").write_text(MODULE.format(clone=clone))
    included = jobs(snakemake(tmp_path, "-n", *words[words.index("--config") :]))
    named = {f"ptmq_{rule}": count for rule, count in expected.items() if rule not in ("all", "total")}
    assert included == {**named, "mine": 1, "total": expected["total"]}
    assert git(clone, "status", "--porcelain", "--ignored") == before


@pytest.mark.parametrize("target, said", [
    ("data.json", "dataset 'cifar10' could not be downloaded: .* Point data_dir .* to a folder that holds cifar-10-batches-py"),
    ("weights/resnet20.safetensors", "weights 'resnet20-12fca82f.th' could not be downloaded from .* Put the file into"),
])  # fmt: skip
def test_without_network_it_says_so_and_how_to_give_the_files(clone, target, said):
    done = snakemake(clone, f"results/cifar10/{target}", *of_the_readme()[1:], **NO_NETWORK)
    assert done.returncode and re.search(said, done.stderr) and "offline" not in done.stderr


def test_what_fails_changes_no_file_of_the_project(clone):
    done = snakemake(clone, *of_the_readme(), **NO_NETWORK)
    assert done.returncode and (clone / "results/cifar10/partial/tables/accuracy.md").exists()
    assert git(clone, "status", "--porcelain") == ""


def test_the_guides_baseline_beside_published_rows_plans_its_own_runs_alone(clone):
    """The guide's file and rule, its line put under the methods of cifar10, for ResNet-20."""
    (path,) = re.findall(r"`(baselines/\w+\.py)`:", GUIDE)
    (file,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    rule = re.findall(r"```\n(use rule.*?)```", GUIDE, re.DOTALL)[0]
    (line,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    rules, profile = clone / "workflow/rules/quantize.smk", clone / "workflow/config/cifar10.yaml"
    try:
        (clone / path).write_text(file)
        rules.write_text(f"{rules.read_text()}\n\n{rule}")
        line = line.replace("digits_resnet", "resnet20")
        profile.write_text(profile.read_text().replace("methods:\n", f"methods:\n{line}"))
        counted = jobs(snakemake(clone, "-n", "all", "--configfile", "workflow/config/cifar10.yaml"))
    finally:
        git(clone, "checkout", "--quiet", ".")
        (clone / path).unlink()
    runs = 2 * 3  # widths and seeds
    computed = {rule: count for rule, count in counted.items() if rule in COMPUTING}
    assert computed == {"data": 1, "weights": 1, "fp32": 1, "evaluate": runs} and counted["absolute_error"] == runs
    methods = set(re.findall(r"^use rule quantize as (\w+)", rules.read_text(), re.MULTILINE))
    assert not methods & set(counted), "no published method is computed again"
