"""The workflow after one real run in a copy of the project: what it made, and that it has nothing left to do.

The networks are real and tiny budgets make the run quick; its accuracy means nothing.
"""

import json
import os
import re

import pandas as pd
import pytest

from tests.projects import QUICK, planned, snakemake
from tests.toys import ROOT


def test_every_run_is_a_row_and_its_record_says_what_was_done(project):
    out = project / "results/digits"
    runs = pd.read_csv(out / "runs.csv")
    assert set(runs.method) == {"fp32", "nearest_mse", "ptmq"} and set(runs.status) == {"done"}
    assert len(runs) == 1 + 6 + 6 and runs.images.eq(597).all()
    record = json.loads((out / "records/digits_resnet/ptmq/default/multi/seed0.json").read_text())
    assert record["protocol"]["iterations"] == 3 and record["run"]["widths"][0] == "W3A3"
    top1 = runs[(runs.method == "ptmq") & (runs.w_bits == 3)].top1.iloc[0]
    assert record["results"][0]["top1"] == top1
    cell = re.search(r"\| digits_resnet \| ptmq \| default \| (\d+\.\d\d) ", (out / "tables/accuracy.md").read_text())
    assert cell and float(cell[1]) == pytest.approx(top1, abs=0.006)


def test_every_table_is_a_parent_run(project):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project}/results/digits/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    parents = {run.info.run_name: run for run in runs if "mlflow.parentRunId" not in run.data.tags}
    assert set(parents) == {"accuracy", "frontier", "verdict"} and len(runs) == 3 + 3 + 1
    made = {path.relative_to(project / "results/digits").as_posix()
            for folder in ("tables", "figures") for path in (project / "results/digits" / folder).iterdir()}  # fmt: skip
    logged = [file.path for run in parents.values() for file in client.list_artifacts(run.info.run_id)]
    assert sorted(logged) == sorted(path.split("/")[1] for path in made), "every table and figure, once"


def test_the_python_of_the_pages_on_use_and_mlflow_runs(project, monkeypatch):
    pages = (ROOT / "docs/use.md").read_text() + (ROOT / "docs/mlflow.md").read_text()
    first, logged = re.findall(r"```python\n(.*?)```", pages, re.DOTALL)
    code = f"{first}\nassert logits.shape == (8, 10) and not logits.requires_grad\n{logged}\nmodel.set_bits(4, 4)"
    monkeypatch.chdir(project)
    import mlflow

    try:
        exec(code, {})
    finally:
        mlflow.set_tracking_uri(None)  # other tests have their own


def test_files_that_were_only_touched_are_no_change(project):
    for folder in ("ptmq", "baselines", "workflow"):
        for path in (project / folder).rglob("*.py"):
            os.utime(path)
    before = {path: path.stat().st_mtime_ns for path in (project / "results").rglob("*")}
    assert planned(snakemake(project, "-n", "all", "--config", QUICK)) == {}
    assert {path: path.stat().st_mtime_ns for path in (project / "results").rglob("*")} == before, "nothing is written"
