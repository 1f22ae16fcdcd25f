"""From run records to the tidy CSV, tables, figures and MLflow, on records made here."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT

GROUPS = {"low": ["W3A3"], "medium": ["W5A5"], "high": ["W8A8"]}


def record(method: str, label: str, seed: int, lines: dict[str, float], seconds: float = 10.0) -> dict:
    """A run record as the evaluation stage writes it; `lines` maps widths to top-1."""
    results = []
    for width, top1 in lines.items():
        w, a = map(int, width[1:].split("A"))
        results.append(
            {"width": width, "w_bits": w, "a_bits": a, "top1": top1, "kl": 0.1, "correct": int(top1), "images": 100}
        )
    unit = {"unit": "stem", "steps": 5, "loss": [2.0, 1.0], "error_before": {"W3A3": 0.2}, "error_after": {"W3A3": 0.1}}
    return {
        "format": 1, "split": "test", "fp_top1": 92.0, "results": results,
        "run": {"backbone": "toy", "method": method, "variant": "default", "label": label, "seed": seed,
                "dataset": "digits", "calibration_images": 64, "profile": "p",
                "groups": None if method == "fp32" else GROUPS},
        "protocol": {"steps": 5, "lr_rounding": 0.1}, "cost": {"seconds": seconds, "peak_mb": 3.0, "evaluation_seconds": 1.0},
        "sha256": {"weights": "ab", "data": {}}, "environment": {"torch": "2", "device": "cpu", "threads": 1},
        "commit": "0123", "units": [unit] if method == "ptmq" else [],
    }  # fmt: skip


WIDTHS = "W3A3,W8A8"


def add(root, body, widths):
    """Write a record, and its name in the order of the rules."""
    run = body["run"]
    name = f"toy/{run['method']}/{run['variant']}/{run['label']}/seed{run['seed']}"
    path = root / "records" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body))
    with (root / "names").open("a") as names:
        names.write(f"{name}:{widths}\n")


@pytest.fixture
def root(tmp_path):
    """A results folder: FP32, PTMQ with two seeds, QDrop width by width."""
    add(tmp_path, record("fp32", "W32A32", 0, {"W32A32": 92.0}), "W32A32")
    for seed in (0, 1):
        add(tmp_path, record("ptmq", "multi", seed, {"W3A3": 80.0 + 2 * seed, "W8A8": 91.0}), WIDTHS)
    add(tmp_path, record("qdrop", "W3A3", 0, {"W3A3": 82.0}), "W3A3")
    add(tmp_path, record("qdrop", "W8A8", 0, {"W8A8": 91.5}), "W8A8")
    return tmp_path


def script(name: str, *args) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "workflow" / "scripts" / f"{name}.py", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def report(root, *options) -> pd.DataFrame:
    names = (root / "names").read_text().split()
    assert (done := script("collect", "--root", root, "--out", root / "runs.csv", *options, *names)).returncode == 0, (
        done.stderr
    )
    assert (done := script("tables", "--runs", root / "runs.csv", "--out", root / "tables")).returncode == 0, (
        done.stderr
    )
    return pd.read_csv(root / "tables" / "accuracy.csv", dtype=str, keep_default_na=False)


def test_the_tidy_table_has_its_columns(root):
    report(root)
    runs = pd.read_csv(root / "runs.csv")
    expected = (
        "backbone method variant w_bits a_bits seed top1 fp_top1 steps calibration_images seconds peak_mb device commit"
    )
    assert set(expected.split()) <= set(runs.columns) and "protocol_lr_rounding" in runs.columns
    assert len(runs) == 1 + 2 * 2 + 2
    row = runs[(runs.method == "ptmq") & (runs.seed == 1) & (runs.w_bits == 3)].iloc[0]
    assert row.top1 == 82 and row.fp_top1 == 92 and row.steps == 5 and row.variant == "default"


def test_tables_give_mean_and_deviation_over_seeds(root):
    table = report(root).set_index("method")
    assert list(table.index) == ["fp32", "qdrop", "ptmq"], "ceiling first, PTMQ last"
    assert table.loc["ptmq", "W3A3"] == "81.00 ± 1.41" and table.loc["ptmq", "W8A8"] == "91.00 ± 0.00"
    assert table.loc["qdrop", "W3A3"] == "82.00" and table.loc["fp32", "W32A32"] == "92.00"
    assert "| toy | ptmq | default | 81.00 ± 1.41 |" in (root / "tables" / "accuracy.md").read_text()
    assert r"toy & ptmq & default & 81.00 $\pm$ 1.41" in (root / "tables" / "accuracy.tex").read_text()
    assert (
        table.loc["ptmq", ["steps in all", "peak MiB", "s a calibration", "s for all widths"]].tolist()
        == list("53") + ["10"] * 2
    )
    assert table.loc["qdrop", "s for all widths"] == "20" and table.loc["fp32", "s for all widths"] == ""


def test_cost_counts_what_all_widths_need(root):
    """A single-width method needs a calibration for each width of the groups, run or not; others are left out."""
    add(root, record("qdrop", "W3A32", 0, {"W3A32": 90.0}, seconds=70.0), "W3A32")
    add(root, record("adaround", "W3A3", 0, {"W3A3": 80.0}, seconds=4.0), "W3A3")
    report(root)
    cost = pd.read_csv(root / "tables" / "cost.csv").set_index("method")
    assert list(cost.widths) == [2, 2, 2]
    assert cost.loc["ptmq", ["calibrations", "seconds_all"]].tolist() == [1, 10]
    assert cost.loc["qdrop", ["calibrations", "seconds_all"]].tolist() == [2, 20]
    assert cost.loc["adaround", ["calibrations", "seconds_all"]].tolist() == [2, 8]


def test_a_failed_cell_names_its_log_and_leaves_the_rest(root):
    (root / "records/toy/qdrop/default/W3A3/seed0.json").unlink()
    (root / "records/toy/qdrop/default/W8A8/seed0.json").unlink()
    log = root / "logs/quantize/toy/qdrop/default/W3A3/seed0.log"
    log.parent.mkdir(parents=True)
    log.write_text("error: ...")
    table = report(root, "--partial").set_index("method")
    assert table.loc["qdrop", "W3A3"] == f"failed ({log})"
    assert table.loc["qdrop", "W8A8"] == "not run"
    assert table.loc["ptmq", "W3A3"] == "81.00 ± 1.41"


def test_tables_and_figures_of_nothing_but_the_ceiling(root):
    for path in root.glob("records/toy/[pq]*"):
        shutil.rmtree(path)
    table = report(root, "--partial").set_index("method")
    assert table.loc["fp32", "W32A32"] == "92.00" and table.loc["ptmq", "W3A3"] == "not run"
    assert script("figures", "--runs", root / "runs.csv", "--out", root / "figures").returncode == 0


def test_without_partial_a_missing_record_is_an_error(root):
    (root / "records/toy/qdrop/default/W3A3/seed0.json").unlink()
    assert script(
        "collect", "--root", root, "--out", root / "runs.csv", *(root / "names").read_text().split()
    ).returncode


def test_figures_are_drawn_in_three_formats(root):
    report(root)
    done = script("figures", "--runs", root / "runs.csv", "--out", root / "figures")
    assert done.returncode == 0, done.stderr
    assert {path.suffix for path in (root / "figures").iterdir()} == {".pdf", ".svg", ".png"}
    text = (root / "figures" / "accuracy.svg").read_text()
    first = text
    script("figures", "--runs", root / "runs.csv", "--out", root / "figures")
    assert (root / "figures" / "accuracy.svg").read_text() == first, "the same data gives the same file"


def log(root, uri) -> subprocess.CompletedProcess:
    records = sorted((root / "records").rglob("*.json"))
    return script("log_mlflow", "--root", root, "--uri", uri, "--experiment", "p", "--out", root / "mlflow.json",
                  "--artifacts", root / "runs.csv", "--records", *records)  # fmt: skip


def test_mlflow_is_logged_once(root):
    report(root)
    model = root / "models/toy/ptmq/default/multi/seed0"
    model.mkdir(parents=True)
    (model / "model.json").write_text("{}")
    uri = f"sqlite:///{root}/mlflow.db"
    for expected in ("5 new of 5", "0 new of 5"):
        done = log(root, uri)
        assert done.returncode == 0 and expected in done.stdout, done.stderr
    import mlflow

    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("p").experiment_id
    runs = client.search_runs([experiment])
    assert len(runs) == 6  # five records and their parent
    ptmq = next(run for run in runs if run.info.run_name == "toy/ptmq/default/multi/seed0")
    history = client.get_metric_history(ptmq.info.run_id, "top1")
    assert {m.step: m.value for m in history} == {3: 80.0, 8: 91.0}
    assert ptmq.data.params["lr_rounding"] == "0.1" and ptmq.data.tags["mlflow.parentRunId"]
    assert {a.path for a in client.list_artifacts(ptmq.info.run_id)} == {"seed0.json", "model"}


def test_an_unreachable_mlflow_keeps_the_results(root):
    report(root)
    done = log(root, "http://127.0.0.1:9")  # the discard port: nobody answers
    assert done.returncode == 1
    assert (
        "MLflow at http://127.0.0.1:9 cannot be reached" in done.stderr
        and "The results are kept; run again later." in done.stderr
    )
    assert (root / "runs.csv").exists() and not (root / "mlflow.json").exists()


@pytest.fixture(autouse=True)
def no_leftovers():
    yield
    shutil.rmtree(ROOT / "mlruns", ignore_errors=True)
