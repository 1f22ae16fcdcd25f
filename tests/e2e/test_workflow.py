"""The workflow where a job fails, where nothing can be fetched, and from records alone; what else is asked of its plan."""

import re
import shutil

import pandas as pd
import pytest

from ptmq.suite.bench.cases import CASES
from tests.projects import QUICK, copy_of_results, copy_of_the_project, planned, snakemake

TABLE = "results/digits/tables/accuracy.md"


@pytest.fixture
def folder(project, tmp_path):
    return copy_of_results(project, tmp_path / "project")


def test_a_failing_method_leaves_the_others_and_what_is_finished(folder):
    path = folder / "baselines/nearest.py"
    before = path.read_text()
    finished = (folder / TABLE).read_text()
    path.write_text(before + "\n    def calibrate(self, model, *more, **others):\n        model.no_such_thing()\n")
    done = snakemake(folder, "all", "--keep-going", "--config", QUICK)
    assert done.returncode, "a failure is a failure"
    table = (folder / "results/digits/partial/tables/accuracy.md").read_text()
    assert "failed (results/digits/logs/quantize/digits_resnet/nearest_mse/default/multi/seed0.log)" in table
    assert re.search(r"\| digits_resnet \| ptmq \| default \| \d+\.\d\d ", table)
    assert (folder / TABLE).read_text() == finished
    path.write_text(before)
    assert snakemake(folder, TABLE, "--config", QUICK).returncode == 0
    assert (folder / TABLE).read_text() == finished, "the same again"


def test_a_baseline_with_a_syntax_error_leaves_the_other_methods(folder):
    (folder / "baselines/mine.py").write_text("def (:\n")
    done = snakemake(folder, TABLE, "--config", "methods={ptmq: {settings: {iterations: 2}}}")
    assert done.returncode == 0 and "rule ptmq" in done.stderr, done.stderr
    done = snakemake(folder, "-n", TABLE, "--config", "methods={mine: {}}")
    said = done.stdout + done.stderr
    assert done.returncode and "Traceback" not in said
    assert "'mine' is unknown, and these modules could not be imported: baselines.mine: Synt" in said


def test_everything_but_the_runs_is_made_again_from_the_records_alone(project, tmp_path):
    """No data, weights or models; what was not run is said."""
    out = project / "results/digits"
    folder = copy_of_the_project(tmp_path)
    for kind in ("records", "mixed"):
        shutil.copytree(out / kind, folder / "results/digits" / kind)
    done = snakemake(folder, "all", "--config", QUICK, "from_records=true")
    assert done.returncode == 0, done.stderr
    assert not (folder / "results/digits/weights").exists() and (folder / "results/digits/mlflow.db").exists()
    made = [p.relative_to(out) for kind in ("tables", "figures") for p in out.glob(f"{kind}/*") if p.suffix != ".pdf"]
    assert len(made) > 20
    for path in [*made, "runs.csv", "profile.json"]:
        assert (folder / "results/digits" / path).read_bytes() == (out / path).read_bytes(), path
    (folder / "results/digits/records/digits_resnet/nearest_mse/default/multi/seed0.json").unlink()
    done = snakemake(folder, TABLE, "--config", QUICK, "from_records=true")
    assert done.returncode == 0, done.stderr
    assert "| digits_resnet | nearest_mse | default | not run |" in (folder / TABLE).read_text()


@pytest.mark.parametrize("target, message", [
    ("data.json", "dataset 'cifar10' is not complete in 'none/cifar-10-batches-py'. Point data_dir"),
    ("weights/resnet20.safetensors", "weights 'resnet20-12fca82f.th' are not in 'none' and offline is true. Point weights_dir"),
])  # fmt: skip
def test_what_is_absent_offline_is_one_sentence(project, target, message):
    done = snakemake(project, f"results/cifar10/{target}", "--configfile", "workflow/config/cifar10.yaml", "--config",
                     "offline=true", "compare=none", "data_dir=none", "weights_dir=none")  # fmt: skip
    assert done.returncode and message in done.stderr


@pytest.mark.parametrize("target, config, message", [
    ("all", ["methods={ptmq: {settings: {lr_roundin: 3}}}"], "ptmq: setting 'lr_roundin' is unknown. Did you mean"),
    ("all", ["from_records=true", "profile=mine"], "results/mine/records has no record of a run of the profile"),
    ("ablations", [QUICK], "has no variants of ptmq or nested to compare"),
])  # fmt: skip
def test_a_mistake_is_told_before_anything_is_planned(project, target, config, message):
    done = snakemake(project, "-n", target, "--config", *config)
    assert done.returncode and message in done.stdout + done.stderr and not planned(done)


def test_a_method_without_a_rule_is_said(folder):
    text = (folder / "baselines/qdrop.py").read_text().replace("QDrop(", "Mine(").replace('"qdrop"', '"mine"')
    (folder / "baselines/mine.py").write_text(text)
    done = snakemake(folder, "-n", "all", "--config", "methods={mine: {per_width: true}}")
    assert "method 'mine' has no rule. Add it to workflow/rules/quantize.smk" in done.stdout + done.stderr


def test_more_seeds_run_those_alone(project):
    done = snakemake(project, "-n", "all", "--config", QUICK, "seeds=[0,1]")
    assert {"nearest", "ptmq", "evaluate", "mixed"} <= set(planned(done)) and not {"train", "fp32"} & set(planned(done))
    assert "seed1.json" in done.stdout


def test_a_profile_can_be_renamed(project):
    done = snakemake(project, "-n", "all", "--config", "profile=mine", QUICK)
    assert done.returncode == 0 and "results/mine/runs.csv" in done.stdout
    assert {"data", "train", "fp32", "nearest", "ptmq"} <= set(planned(done))


def test_the_bench_has_a_job_for_every_case_that_it_knows(project):
    done = snakemake(project, "-n", "bench")
    cases = set(re.findall(r"output: results/bench/records/1/([\w-]+)\.json", done.stdout))
    assert cases == set(CASES)


def test_a_second_run_has_nothing_to_do(project):
    done = snakemake(project, "all", "--config", QUICK)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr
    assert set(pd.read_csv(project / "results/digits/runs.csv").status) == {"done"}
