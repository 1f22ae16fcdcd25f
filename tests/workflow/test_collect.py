"""From run records to the tidy CSV: every measurement a row, and what is missing said."""

import hashlib
import json
import shutil

import pandas as pd
import pytest

from tests.records import BOTH, Results, deployed, record, script


def test_every_measurement_is_a_row_with_what_explains_it(results):
    results.collect()
    runs = pd.read_csv(results.root / "runs.csv")
    assert len(runs) == 1 + 2 * 2 + 2 and set(runs.status) == {"done"} and set(runs.origin) == {"own"}
    row = runs[(runs.method == "ptmq") & (runs.seed == 1) & (runs.w_bits == 3)].iloc[0]
    expected = {"backbone": "toy", "variant": "default", "a_bits": 3, "top1": 82, "fp_top1": 92, "iterations": 5,
                "calibration_images": 64, "seconds": 10, "peak_mb": 3, "device": "cpu", "in_groups": True,
                "protocol_lr_rounding": 0.1, "machine": "a processor", "cores": 2}  # fmt: skip
    assert {key: row[key] for key in expected} == expected


def test_older_records_have_their_iterations_under_another_name(tmp_path):
    results = Results(tmp_path)
    body = record("ptmq", BOTH)
    body["protocol"] = {"steps": 7}
    body["units"] = [{"unit": "stem", "steps": 7, "loss": [], "error_before": {}, "error_after": {}}]
    results.add(body)
    found = results.collect()
    assert set(found.iterations) == set(found.iterations_all) == set(found.protocol_iterations) == {7}


def test_all_widths_together_cost_what_their_runs_cost(tmp_path):
    results = Results(tmp_path)
    for label, seconds in {"W3A3": 4.0, "W5A5": 6.0}.items():
        bits = float(label[1])
        body = record("qdrop", {label: 80.0}, label=label, cost={"seconds": seconds, "cpu_seconds": seconds})
        results.add(body | {"bits_per_weight": bits})
    results.add(record("ptmq", BOTH, cost={"cpu_seconds": 7.0}) | {"bits_per_weight": 33.0})
    results.add(record("nearest_mse", BOTH))
    found = results.collect().set_index("method")[["bits_per_weight", "seconds_all", "cpu_seconds_all"]]
    assert (found.loc["qdrop"].astype(float) == [8.0, 10.0, 10.0]).all(axis=None), "the sum over both, in both rows"
    assert (found.loc["ptmq"].astype(float) == [33.0, 10.0, 7.0]).all(axis=None)
    assert set(found.loc["nearest_mse", "bits_per_weight"]) == {""}, "a record that does not say"


def test_figures_of_merit_of_an_onnx_file_stand_beside_the_run_that_it_was_made_of(tmp_path):
    results = Results(tmp_path)
    for method in ("nested", "ptmq"):
        results.add(record(method, {"W4A4": 80.0}))
    path = results.path("nested", kind="deploy")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(deployed("nested", 79.0)))
    found = results.collect().set_index("method")
    onnx = [column for column in found if column.startswith("onnx_")]
    assert set(found.loc["ptmq", onnx]) == {""} and "" not in set(found.loc["nested", onnx].drop("onnx_fp32_peak_mb"))
    expected = {"top1": 79, "equal": 99, "largest_difference": 0.1, "equal_float64": 100, "bytes": 2048, "fp32_bytes": 8192,
                "bits_per_weight": 9.5, "ms_1": 2, "fp32_ms_1": 5, "ms_32": 2, "load_ms": 7, "switch_ms": 0.25,
                "peak_mb": 4}  # fmt: skip
    row = found.loc["nested"]
    assert {name: float(row[f"onnx_{name}"]) for name in expected} == expected


def test_another_way_to_measure_a_model_is_a_variant_of_its_own(two_ways):
    found = two_ways.collect()
    multiquant = found[found.method == "multiquant"]
    assert sorted(multiquant.variant) == ["default"] * 2 + ["default+no_recalibration"] * 2
    assert set(multiquant[multiquant.variant == "default"].switch_images) == {1000}
    assert set(found[found.method == "ptmq"].switch_images) == {0}


def test_a_missing_record_is_an_error_unless_it_is_allowed(results):
    results.path("qdrop", label="W3A3").unlink()
    with pytest.raises(FileNotFoundError):
        results.collect()
    missing = results.collect("--partial").query("status != 'done'")
    assert list(zip(missing.method, missing.w_bits, missing.status, strict=True)) == [("qdrop", 3, "not run")]


def test_a_failed_run_names_its_log(results):
    results.path("qdrop", label="W3A3").unlink()
    log = results.root / "logs/quantize/toy/qdrop/default/W3A3/seed0.log"
    log.parent.mkdir(parents=True)
    log.write_text("error: ...")
    (row,) = results.collect("--partial").query("status == 'failed'").itertuples()
    assert (row.method, row.w_bits, row.log) == ("qdrop", 3, str(log))


def test_a_record_that_outlived_its_model_has_failed_since(results):
    for folder in ("models", "logs/quantize"):
        (results.root / folder / "toy/ptmq/default/multi").mkdir(parents=True)
    (results.root / "logs/quantize/toy/ptmq/default/multi/seed0.log").write_text("error: ...")
    status = results.collect("--partial").query("method == 'ptmq'").groupby("seed").status.first()
    assert status.to_dict() == {0: "failed", 1: "done"}


def test_published_records_say_so(results, tmp_path):
    published = shutil.copytree(results.root, tmp_path / "published")
    own, others = results.names[:2], results.names[1:]
    script("collect", "--root", results.root, "--out", tmp_path / "runs.csv", "--own", *own,
           "--published", published, *others)  # fmt: skip
    runs = pd.read_csv(tmp_path / "runs.csv")
    assert list(runs.groupby("origin").size()) == [1 + 2, 2 * 2 + 2]


def test_rows_of_several_code_states_are_marked(tmp_path):
    results = Results(tmp_path)
    for seed, code in enumerate(["aa", "bb"]):
        results.add(record("ptmq", BOTH, seed, code_sha256=code))
    results.add(record("nearest_mse", BOTH, code_sha256="cc"))
    found = results.collect().set_index("method").mixed_code
    assert set(found["ptmq"]) == {"2 code states"}
    assert set(found["nearest_mse"]) == {""}, "another method's code is its own"


@pytest.mark.parametrize("codes, said", [
    (["aa", "aa"], ""), ([None, None], "code not recorded"), (["aa", None], "some not recorded"),
])  # fmt: skip
def test_older_records_say_that_they_do_not_say(tmp_path, codes, said):
    results = Results(tmp_path)
    for seed, code in enumerate(codes):
        results.add(record("ptmq", BOTH, seed, code_sha256=code))
    assert set(results.collect().mixed_code) == {said}


def test_kept_answers_are_those_that_the_record_was_written_with(tmp_path, capsys):
    results = Results(tmp_path)
    path = results.add(record("ptmq", BOTH))
    kept = path.with_suffix(".correct.safetensors")
    kept.write_bytes(b"bits")
    assert set(results.collect().correct_file) == {""}, "a record that does not know of it"
    body = json.loads(path.read_text())
    body["sha256"]["correct"] = hashlib.sha256(b"bits").hexdigest()
    path.write_text(json.dumps(body))
    (file,) = set(results.collect().correct_file)
    assert (tmp_path / file) == kept
    kept.write_bytes(b"other bits")
    with pytest.raises(SystemExit, match=r"is not the file that seed0.json was written with"):
        results.collect()


def test_images_processed_are_told(tmp_path):
    """Five iterations of eight images at a width of each of three groups; an epoch of all images."""
    results = Results(tmp_path)
    results.add(record("ptmq", BOTH))
    results.add(record("multiquant", BOTH, cost={"epochs": 3, "images": 100}))
    found = results.collect().set_index("method").images_processed
    assert set(found["ptmq"]) == {5 * 8 * 3} and set(found["multiquant"]) == {300}
