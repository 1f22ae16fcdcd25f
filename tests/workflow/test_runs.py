"""The workflow in a copy of the project: what runs, what reruns, and what a mistake or a failure is told.

The networks are real and tiny budgets make the runs quick; the accuracy of such runs means nothing.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from conftest import QUICK, ROOT, copy_of_results, copy_of_the_project, snakemake


def jobs(done: subprocess.CompletedProcess) -> set[str]:
    """The rules that a dry run would run."""
    return {
        line.split()[1].rstrip(":") for line in done.stdout.splitlines() if line.startswith(("rule ", "localrule "))
    }


def test_everything_is_there(project):
    out = project / "results/digits"
    runs = pd.read_csv(out / "runs.csv")
    assert set(runs.method) == {"fp32", "nearest_mse", "ptmq"} and set(runs.status) == {"done"}
    assert len(runs) == 1 + 6 + 6 and runs.images.eq(597).all()
    tables = [f"tables/{name}.{e}" for name in ("accuracy", "verdict", "frontier") for e in ("csv", "md", "tex")]
    names = ("accuracy", "blocks", "rounding", "cost", "frontier")
    figures = [f"figures/{name}.{e}" for name in names for e in ("pdf", "svg", "png")]
    for name in [*tables, *figures, "mlflow.db"]:
        assert (out / name).stat().st_size > 0, name
    record = json.loads((out / "records/digits_resnet/ptmq/default/multi/seed0.json").read_text())
    assert record["protocol"]["steps"] == 3 and record["run"]["widths"][0] == "W3A3"
    assert {"python", "torch", "device", "threads"} <= set(record["environment"]) and record["commit"]
    assert (out / "logs/quantize/digits_resnet/ptmq/default/multi/seed0.log").exists()


def test_a_second_run_has_nothing_to_do(project):
    done = snakemake(project, "all", "--config", QUICK)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout + done.stderr


SUMMARY = {"collect", "tables", "accuracy", "cost", "verdict", "mlflow", "all"}  # of all runs
OF_PTMQ = {"evaluate", "blocks", "mixed", "frontier"}


@pytest.mark.parametrize("file, reruns", [
    ("baselines/nearest.py", {"nearest", "evaluate"} | SUMMARY),
    ("ptmq/methods/ptmq.py", {"ptmq"} | OF_PTMQ | SUMMARY),
    ("ptmq/models/definitions/cifar_resnet.py", {"train", "fp32", "ptmq", "nearest"} | OF_PTMQ | SUMMARY),
    ("ptmq/reconstruction/losses.py", {"ptmq", "nearest"} | OF_PTMQ | SUMMARY),
    ("ptmq/suite/frontier.py", {"mixed", "frontier", "verdict", "mlflow", "all"}),
    ("workflow/scripts/accuracy.py", {"accuracy", "mlflow", "all"}),
    ("workflow/published.yaml", {"verdict", "mlflow", "all"}),
])  # fmt: skip
def test_a_change_reruns_what_it_changes_and_no_more(project, file, reruns):
    path = project / file
    before, times = path.read_text(), path.stat()
    try:
        os.utime(path)  # a touch is no change
        touched = snakemake(project, "-n", "all", "--config", QUICK)
        path.write_text(before + "\n# changed\n")
        assert jobs(snakemake(project, "-n", "all", "--config", QUICK)) == reruns
        assert jobs(touched) <= reruns
    finally:
        path.write_text(before)
        os.utime(path, (times.st_atime, times.st_mtime))


def test_another_setting_reruns_its_method_alone(project):
    done = snakemake(project, "-n", "all", "--config", "methods={ptmq: {settings: {steps: 4}}}")
    assert {"ptmq", "evaluate"} <= jobs(done) and not {"nearest", "train", "fp32", "data"} & jobs(done)


def test_the_calibrated_model_can_be_taken_away(project):
    from ptmq.network.serialization import load_model

    model, info = load_model(project / "results/digits/models/digits_resnet/ptmq/default/multi/seed0")
    model.set_bits(3, 3)
    assert info["run"]["method"] == "ptmq" and info["units"][0]["unit"] == "stem"


def test_the_python_of_the_readme_runs(project):
    first, logged = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    code = f"{first}\nassert logits.shape == (8, 10) and not logits.requires_grad\n{logged}\nmodel.set_bits(4, 4)"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_mistake_in_the_profile_is_one_sentence(project):
    done = snakemake(project, "-n", "all", "--config", "sedes=[1]")
    said = done.stdout + done.stderr  # a dry run tells it on stdout
    assert done.returncode and "key 'sedes' is unknown. Did you mean 'seeds'?" in said
    assert "Traceback" not in said


def test_a_mistake_in_a_method_stops_before_the_first_computation(tmp_path):
    folder = copy_of_the_project(tmp_path)
    done = snakemake(folder, "all", "--config", "methods={ptmq: {settings: {lr_roundin: 3}}}")
    assert done.returncode and "ptmq: setting 'lr_roundin' is unknown. Did you mean 'lr_rounding'?" in done.stderr
    assert not (folder / "results/digits/weights").exists()


def test_a_failing_method_leaves_the_others(project):
    path = project / "baselines/nearest.py"
    before = path.read_text()
    try:
        path.write_text(before + "\n    def calibrate(self, model, *_):\n        model.no_such_thing()\n")
        done = snakemake(project, "all", "--keep-going", "--config", QUICK)
        assert done.returncode, "a failure is a failure"
        table = (project / "results/digits/tables/accuracy.md").read_text()
        assert "failed (results/digits/logs/quantize/digits_resnet/nearest_mse/default/multi/seed0.log)" in table
        assert "| digits_resnet | ptmq | default |" in table
    finally:
        path.write_text(before)
    assert snakemake(project, "all", "--config", QUICK).returncode == 0
    assert "failed" not in (project / "results/digits/tables/accuracy.md").read_text()


def test_a_baseline_with_a_syntax_error_leaves_the_other_methods(project, tmp_path):
    folder = copy_of_results(project, tmp_path / "project")
    (folder / "baselines/mine.py").write_text("def (:\n")
    table = "results/digits/tables/accuracy.md"
    done = snakemake(folder, table, "--config", "methods={ptmq: {settings: {steps: 2}}}")
    assert done.returncode == 0 and "rule ptmq" in done.stderr, done.stderr
    done = snakemake(folder, "-n", table, "--config", "methods={mine: {}}")
    said = done.stdout + done.stderr
    assert done.returncode
    assert "'mine' is unknown, and these modules could not be imported: baselines.mine: Synt" in said
    assert "Traceback" not in said


def test_a_dry_run_writes_no_result(project):
    before = {path: path.stat().st_mtime for path in (project / "results").rglob("*")}
    snakemake(project, "-n", "all", "--config", "calibration_images=64")
    assert {path: path.stat().st_mtime for path in (project / "results").rglob("*")} == before


def test_a_profile_can_be_renamed_and_a_method_without_a_rule_is_said(project):
    done = snakemake(project, "-n", "all", "--config", "profile=mine", QUICK)
    assert "results/mine/runs.csv" in done.stdout and done.returncode == 0
    path = project / "baselines/mine.py"
    path.write_text(
        (project / "baselines/qdrop.py").read_text().replace("QDrop(", "Mine(").replace('"qdrop"', '"mine"')
    )
    try:
        done = snakemake(project, "-n", "all", "--config", "methods={mine: {per_width: true}}")
        assert "method 'mine' has no rule. Add it to workflow/rules/quantize.smk" in done.stdout + done.stderr
    finally:
        path.unlink()


@pytest.mark.parametrize("target, message", [
    ("data.json", "dataset 'cifar10' is not complete in 'none/cifar-10-batches-py' and offline is true. Point data_dir"),
    ("weights/resnet20.safetensors", "weights 'resnet20-12fca82f.th' are not in 'none' and offline is true. Point weights_dir"),
])  # fmt: skip
def test_what_is_absent_offline_is_one_sentence(project, target, message):
    done = snakemake(project, f"results/cifar10/{target}", "--configfile", "workflow/config/cifar10.yaml", "--config",
                     "offline=true", PTMQ_DATA_DIR="none", PTMQ_WEIGHTS_DIR="none")  # fmt: skip
    assert done.returncode and message in done.stderr


def test_everything_but_the_runs_is_made_again_from_the_records_alone(project, tmp_path):
    """No data, weights or models; what was not run is said."""
    out = project / "results/digits"
    folder = copy_of_the_project(tmp_path)
    for kind in ("records", "mixed"):
        shutil.copytree(out / kind, folder / "results/digits" / kind)
    done = snakemake(folder, "all", "--config", QUICK, "from_records=true")
    assert done.returncode == 0, done.stderr
    assert not (folder / "results/digits/weights").exists() and (folder / "results/digits/mlflow.db").exists()
    made = [p.relative_to(out) for p in out.rglob("*") if p.parent.name in ("tables", "figures") and p.suffix != ".pdf"]
    assert len(made) > 20
    for path in [*made, "runs.csv", "profile.json"]:
        assert (folder / "results/digits" / path).read_bytes() == (out / path).read_bytes(), path
    (folder / "results/digits/records/digits_resnet/nearest_mse/default/multi/seed0.json").unlink()
    done = snakemake(folder, "all", "--config", QUICK, "from_records=true")
    assert done.returncode == 0, done.stderr
    table = (folder / "results/digits/tables/accuracy.md").read_text()
    assert "| digits_resnet | nearest_mse | default | not run |" in table


@pytest.mark.parametrize("profile", ["cifar10", "cifar10_ablations", "cifar10_tuning", "imagenet_subset"])
def test_the_published_tables_are_those_of_the_published_records(profile, tmp_path):
    folder = copy_of_the_project(tmp_path)
    published = ROOT / "results" / profile
    for path in (ROOT / "results").glob(f"{profile}*"):  # the verdict reads the ablations, too
        shutil.copytree(
            path, folder / "results" / path.name, ignore=shutil.ignore_patterns("mlflow*", "tables", "figures")
        )
    done = snakemake(folder, "all", "--forceall", "--configfile", f"workflow/config/{profile}.yaml", "--config",
                     "from_records=true", f"tracking_uri=sqlite:///{tmp_path}/mlflow.db")  # fmt: skip
    assert done.returncode == 0, done.stderr
    made, committed = ({p.name: p.read_text() for p in (results / "tables").iterdir() if p.suffix != ".html"}
                       for results in (folder / "results" / profile, published))  # fmt: skip
    assert set(made) == set(committed) >= {"accuracy.csv", "accuracy.md", "accuracy.tex"}
    for name, text in committed.items():
        assert made[name] == text, name


VARIANTS = "methods={ptmq: {settings: {steps: 3}, variants: {%s}}}"


@pytest.mark.parametrize("target, config, message", [
    ("ablation_gd", QUICK, "no variant of ptmq whose name begins with 'gd_'"),
    ("ablations", QUICK, "has no variants of ptmq to compare"),
    ("ablation_gd", VARIANTS % "gd_none: {gd: none}", "'default' of the same backbone and seed, which is missing for digits_resnet, seed 0"),
    ("ablation_gd", VARIANTS % "default: {}, gd_none: {gd: none, seeds: [1]}", "missing for digits_resnet, seed 1"),
    ("all", ["from_records=true", "profile=mine"], "results/mine/records has no record of a run of the profile"),
])  # fmt: skip
def test_what_cannot_be_compared_is_said(project, target, config, message):
    done = snakemake(project, "-n", target, "--config", *([config] if isinstance(config, str) else config))
    said = done.stdout + done.stderr
    assert done.returncode and message in said


def test_every_table_is_a_parent_run(project):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project}/results/digits/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    parents = {run.info.run_name: run for run in runs if "mlflow.parentRunId" not in run.data.tags}
    assert set(parents) == {"accuracy", "frontier", "verdict"}
    files = {file.path for file in client.list_artifacts(parents["verdict"].info.run_id)}
    assert files == {f"verdict.{extension}" for extension in ("csv", "html", "md", "tex")}
    assert "accuracy.png" in {file.path for file in client.list_artifacts(parents["accuracy"].info.run_id)}
