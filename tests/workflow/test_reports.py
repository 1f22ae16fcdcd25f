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


def script(name: str, *args, given: str | None = None) -> subprocess.CompletedProcess:
    """Run a script of the workflow; `given` is its standard input."""
    command = [sys.executable, ROOT / "workflow" / "scripts" / f"{name}.py", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, input=given)


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


def test_another_way_to_measure_a_model_is_a_row_of_its_own(root):
    body = record("multiquant", "multi", 0, {"W3A3": 85.0, "W8A8": 91.0})
    body["results"] = [line | {"switch_images": 1000, "switch_ms": 20.0} for line in body["results"]] + [
        line | {"mode": "no_recalibration", "top1": 10.0} for line in body["results"]
    ]
    body["cost"] |= {"images": 1000, "labels": 1000, "epochs": 5}
    body["units"], body["training"] = [], {"steps": 35, "loss": [1.0] * 5}
    add(root, body, WIDTHS)
    report(root)
    table = pd.read_csv(root / "tables" / "accuracy.csv", keep_default_na=False).set_index(["method", "variant"])
    assert table.loc[("multiquant", "default"), "W3A3"] == "85.00"
    assert table.loc[("multiquant", "default+no_recalibration"), "W3A3"] == "10.00"
    given = ["images", "labels", "epochs", "steps in all", "images a switch", "ms a switch"]
    assert list(table.loc[("multiquant", "default"), given]) == ["1000", "1000", "5", "35", "1000", "20"]
    assert list(table.loc[("ptmq", "default"), given]) == ["64", "", "", "5", "", ""]


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
    assert table.loc["ptmq", "peak MiB"] == "3", "whole numbers stay whole beside missing runs"


def test_a_seed_that_is_missing_hides_no_other(root):
    (root / "records/toy/ptmq/default/multi/seed1.json").unlink()
    table = report(root, "--partial").set_index("method")
    assert table.loc["ptmq", "W3A3"] == "80.00, 1 of 2 seeds, else not run"


def test_tables_and_figures_of_nothing_but_the_ceiling(root):
    for path in root.glob("records/toy/[pq]*"):
        shutil.rmtree(path)
    table = report(root, "--partial").set_index("method")
    assert table.loc["fp32", "W32A32"] == "92.00" and table.loc["ptmq", "W3A3"] == "not run"
    assert script("accuracy", "--runs", root / "runs.csv", "--out", root / "figures").returncode == 0


def test_a_missing_seed_is_told_for_every_way_of_measuring(root):
    body = record("any_precision", "multi", 0, {"W3A3": 70.0})
    body["results"].append(body["results"][0] | {"mode": "truncated", "top1": 60.0})
    add(root, body, "W3A3")
    (root / "names").open("a").write("toy/any_precision/default/multi/seed1:W3A3\n")
    table = report(root, "--partial").set_index(["method", "variant"])["W3A3"]
    assert table["any_precision", "default"] == "70.00, 1 of 2 seeds, else not run"
    assert table["any_precision", "default+truncated"] == "60.00, 1 of 2 seeds, else not run"


def test_without_partial_a_missing_record_is_an_error(root):
    (root / "records/toy/qdrop/default/W3A3/seed0.json").unlink()
    assert script(
        "collect", "--root", root, "--out", root / "runs.csv", *(root / "names").read_text().split()
    ).returncode


def frontier_record(root, seed: int) -> None:
    """A record of the mixed-precision stage: two uniform widths and two budgets; one more point a seed is 1 % better."""
    points = [
        {"kind": kind, "budget": budget, "average_bits": bits, "kib": 10 * bits, "bit_operations": int(1e9 * bits), "top1": top1 + seed, "kl": 0.1,
         "correct": 85, "images": 100}
        for kind, budget, bits, top1 in (
            ("uniform", "W3A3", 3.0, 80.0), ("uniform", "W8A8", 8.0, 91.0), ("mixed", "3.50", 3.5, 85.0),
            ("mixed", "5.50", 5.5, 90.5))
    ]  # fmt: skip
    body = record("ptmq", "multi", seed, {})
    body = {key: body[key] for key in ("run", "protocol", "environment", "commit", "fp_top1", "split", "sha256")}
    body |= {"points": points, "switching": {
        "switch_ms": 0.1, "switch_images": 0, "prepared_mib": 2.0, "adaptive_bn_ms": 1500.0, "adaptive_bn_images": 12800}}  # fmt: skip
    path = root / f"mixed/toy/ptmq/default/multi/seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body))


def test_the_frontier_is_a_table_and_a_figure(root):
    for seed in (0, 1):
        frontier_record(root, seed)
    done = script("frontier", "--out", root, "--records", *sorted((root / "mixed").rglob("*.json")))
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(root / "tables/frontier.csv", dtype=str).set_index("budget")
    assert list(table.index) == ["W3A3", "W8A8", "3.50", "5.50"], "uniform widths first, each by its bits"
    assert table.loc["3.50", ["kind", "average_bits", "kib", "seeds", "top1"]].tolist() == [
        "mixed", "3.50", "35.0", "2", "85.50 ± 0.71"]  # fmt: skip
    assert {path.suffix for path in (root / "figures").glob("frontier.*")} == {".pdf", ".svg", ".png"}
    switching = pd.read_csv(root / "tables/switching.csv").set_index("backbone")
    assert switching.loc["toy", ["ms a switch", "images a switch", "s of AdaptiveBN", "seeds"]].tolist() == [
        0.1, 0, 1.5, 2]  # fmt: skip


def test_an_ablation_compares_variants_with_the_default_seed_by_seed(root):
    for seed in (0, 1):
        body = record("ptmq", "multi", seed, {"W3A3": 78.0 + 3 * seed, "W8A8": 91.5})
        body["run"]["variant"] = "gd_none"
        body["units"][0]["h_after"] = [40, 40]
        add(root, body, WIDTHS)
    records = sorted((root / "records/toy/ptmq").rglob("*.json"))
    done = script("ablation", "--root", root, "--name", "gd", "--records", *records)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(root / "tables/ablation_gd.csv", dtype=str, keep_default_na=False).set_index("variant")
    assert list(table.index) == ["default", "gd_none"]
    # 78 - 80 and 81 - 82: the mean is -1.5, the interval t(0.975, 1) * 0.7071 / sqrt(2)
    assert table.loc["gd_none", "change W3A3"] == "-1.50 ± 6.35" and table.loc["default", "change W3A3"] == ""
    assert table.loc["gd_none", "R [KiB]"] == "0.01"  # 80 values of one bit
    assert {path.suffix for path in (root / "figures").iterdir()} == {".pdf", ".svg", ".png"}


def test_the_blocks_and_the_cost_are_figures(root):
    body = record("ptmq", "multi", 2, {"W3A3": 80.0, "W8A8": 91.0})
    body["units"][0] |= {"h_before": [5, 5], "h_after": [9, 1]}
    add(root, body, WIDTHS)
    report(root)
    records = sorted((root / "records/toy").glob("[pq]*/**/*.json"))
    for name, source in (("blocks", ["--records", *records]), ("cost", ["--runs", root / "runs.csv"])):
        done = script(name, "--out", root / "figures", *source)
        assert done.returncode == 0, done.stderr
    names = {path.name for path in (root / "figures").iterdir()}
    assert names == {f"{name}.{e}" for name in ("blocks", "rounding", "cost") for e in ("pdf", "svg", "png")}


def test_figures_are_drawn_in_three_formats(root):
    report(root)
    done = script("accuracy", "--runs", root / "runs.csv", "--out", root / "figures")
    assert done.returncode == 0, done.stderr
    assert {path.suffix for path in (root / "figures").iterdir()} == {".pdf", ".svg", ".png"}
    text = (root / "figures" / "accuracy.svg").read_text()
    first = text
    script("accuracy", "--runs", root / "runs.csv", "--out", root / "figures")
    assert (root / "figures" / "accuracy.svg").read_text() == first, "the same data gives the same file"


def test_the_legend_says_what_lies_below_the_axis(root):
    add(root, record("flexround", "multi", 0, {"W3A3": 20.0, "W8A8": 30.0}), WIDTHS)
    report(root)
    for name in ("accuracy", "cost"):
        assert script(name, "--runs", root / "runs.csv", "--out", root / "figures").returncode == 0
        drawn = (root / "figures" / f"{name}.svg").read_text()
        assert "FlexRound (below)" in drawn and "PTMQ" in drawn and "PTMQ (below)" not in drawn


def log(root, uri) -> subprocess.CompletedProcess:
    """Log all records below a parent `accuracy`, and those in mixed/ below a parent `frontier`."""
    records, mixed = (
        sorted(str(path.relative_to(root)) for path in root.glob(f"{folder}/**/*.json"))
        for folder in ("records", "mixed")
    )
    parents = {
        "accuracy": {"artifacts": ["runs.csv"], "records": records},
        "frontier": {"artifacts": [], "records": mixed},
    }
    return script("log_mlflow", "--root", root, "--uri", uri, "--experiment", "p", "--out", root / "mlflow.json",
                  given=json.dumps(parents))  # fmt: skip


def test_mlflow_is_logged_once(root):
    import mlflow

    report(root)
    model = root / "models/toy/ptmq/default/multi/seed0"
    model.mkdir(parents=True)
    (model / "model.json").write_text("{}")
    frontier_record(root, seed=0)
    uri = f"sqlite:///{root}/mlflow.db"
    for expected in ("6 new of 6", "0 new of 6"):
        done = log(root, uri)
        assert done.returncode == 0 and expected in done.stdout, done.stderr
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("p").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert len(client.search_runs([experiment])) == len(runs) == 8  # six records and two parents
    ptmq = runs["toy/ptmq/default/multi/seed0"]
    history = client.get_metric_history(ptmq.info.run_id, "top1")
    assert {m.step: m.value for m in history} == {3: 80.0, 8: 91.0}
    curve = client.get_metric_history(ptmq.info.run_id, "loss.00.stem")
    assert [(m.step, m.value) for m in curve] == [(0, 2.0), (1, 1.0)]
    assert ptmq.data.params["lr_rounding"] == "0.1"
    assert {a.path for a in client.list_artifacts(ptmq.info.run_id)} == {"seed0.json", "model"}
    assert [a.path for a in client.list_artifacts(runs["accuracy"].info.run_id)] == ["runs.csv"]
    mixed = runs["mixed/toy/ptmq/default/multi/seed0"]
    points = client.get_metric_history(mixed.info.run_id, "top1_mixed")
    assert {m.step: m.value for m in points} == {350: 85.0, 550: 90.5}
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    assert parents["mixed/toy/ptmq/default/multi/seed0"] == runs["frontier"].info.run_id
    assert parents["toy/qdrop/default/W3A3/seed0"] == runs["accuracy"].info.run_id


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
