"""Records in MLflow: a parent for every table, each record once, what was logged is what was measured."""

import json
import shutil
import sqlite3

import pytest

from tests.records import Results, frontier_record


@pytest.fixture
def complete(results, monkeypatch, tmp_path) -> Results:
    """The results with a table, a model and a record of mixed precision."""
    monkeypatch.chdir(tmp_path)  # where MLflow would leave a folder
    results.collect()
    model = results.root / "models/toy/ptmq/default/multi/seed0"
    model.mkdir(parents=True)
    (model / "model.json").write_text("{}")
    path = results.path("ptmq", kind="mixed")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(frontier_record(0)))
    return results


def test_a_database_that_a_kill_left_half_made_does_not_stop_the_next_run(complete, capsys, monkeypatch, tmp_path):
    """MLflow makes its tables one by one, and cannot go on where it was killed among them."""
    import mlflow

    def killed(client, uri=None):
        with sqlite3.connect((uri or mlflow.get_tracking_uri()).removeprefix("sqlite:///")) as file:
            file.execute("CREATE TABLE registered_models (name VARCHAR(256))")
        raise KeyboardInterrupt

    with monkeypatch.context() as during, pytest.raises(KeyboardInterrupt):
        during.setattr(mlflow.MlflowClient, "__init__", killed)
        complete.log(f"sqlite:///{tmp_path}/mlflow.db")
    complete.log(f"sqlite:///{tmp_path}/mlflow.db")
    assert "6 new of 6" in capsys.readouterr().out


def test_records_are_logged_once_with_what_they_measured(complete, capsys, tmp_path):
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for expected in ("6 new of 6", "0 new of 6"):
        complete.log(uri)
        assert expected in capsys.readouterr().out
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("p").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert len(client.search_runs([experiment])) == len(runs) == 6 + 2, "six records and two parents"

    ptmq = runs["toy/ptmq/default/multi/seed0"]
    assert ptmq.data.params["lr_rounding"] == "0.1" and ptmq.data.params["commit"] == "0123"
    assert ptmq.data.metrics["top1_W3A3"] == 80.0 and ptmq.data.metrics["seconds"] == 10.0
    history = client.get_metric_history(ptmq.info.run_id, "top1")
    assert {m.step: m.value for m in history} == {3: 80.0, 8: 91.0}
    curve = client.get_metric_history(ptmq.info.run_id, "loss.00.stem")
    assert [(m.step, m.value) for m in curve] == [(0, 2.0), (1, 1.0)]
    assert "seed0.json" in {a.path for a in client.list_artifacts(ptmq.info.run_id)}
    assert {(i.dataset.name, i.tags[0].value) for i in ptmq.inputs.dataset_inputs} == {
        ("digits (train)", "calibration"), ("digits (test)", "evaluation")}  # fmt: skip
    (model,) = client.search_logged_models([experiment])
    assert model.source_run_id == ptmq.info.run_id and model.model_type == "ptmq"

    assert [a.path for a in client.list_artifacts(runs["accuracy"].info.run_id)] == ["runs.csv"]
    points = client.get_metric_history(runs["mixed/toy/ptmq/default/multi/seed0"].info.run_id, "top1_mixed")
    assert {m.step: m.value for m in points} == {350: 85.0, 550: 90.5}
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    assert parents["mixed/toy/ptmq/default/multi/seed0"] == runs["frontier"].info.run_id
    assert parents["toy/qdrop/default/W3A3/seed0"] == runs["accuracy"].info.run_id

    changed = json.loads(complete.path("qdrop", label="W3A3").read_text())
    changed["results"][0]["top1"] = 83.0
    complete.path("qdrop", label="W3A3").write_text(json.dumps(changed))
    complete.log(uri)
    assert "1 new of 6" in capsys.readouterr().out, "another content is another record"
    moved = shutil.copytree(complete.root, tmp_path / "moved")
    complete.root = moved
    complete.log(uri)
    assert "6 new of 6" in capsys.readouterr().out, "a copy of the results has an experiment of its own"


def test_an_unreachable_mlflow_keeps_the_results(complete):
    with pytest.raises(SystemExit, match="cannot be reached: .*The results are kept; run again later."):
        complete.log("http://127.0.0.1:9")  # the discard port: nobody answers
    assert (complete.root / "runs.csv").exists() and not (complete.root / "mlflow.json").exists()
