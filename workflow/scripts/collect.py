"""Run records -> one tidy CSV, a row for each backbone, method, variant, width and seed.

    collect.py --root results/digits --out results/digits/runs.csv --own NAME:WIDTHS ...
        [--published results/published/digits NAME:WIDTHS ...]

NAME is backbone/method/variant/label/seedN, WIDTHS are its widths. With --partial a missing record becomes
rows whose status is `failed` (its log exists, and is named) or `not run`. Rows of published records have the origin
`published`, others `own`. Where a run's ONNX file was measured, its figures of merit stand in the columns `onnx_...`.
"""

import argparse
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

KEYS = ["backbone", "method", "variant", "label", "seed"]
MEASURED = ["w_bits", "a_bits", "top1", "kl", "correct", "images"]
COST = ["iterations", "iterations_all", "calibration_images", "images_used", "labels", "epochs"]
COST += ["switch_images", "switch_ms"]
COST += [
    "bits_per_weight",
    "seconds",
    "seconds_all",
    "cpu_seconds",
    "cpu_seconds_all",
    "evaluation_seconds",
    "peak_mb",
    "device",
    "threads",
]
COLUMNS = ["backbone", "method", "variant", "w_bits", "a_bits", "seed", "top1", "fp_top1", *COST, "commit", "status"]
COLUMNS += [
    "origin",
    "label",
    "in_groups",
    "kl",
    "correct",
    "images",
    "split",
    "dataset",
    "weights_sha256",
    "model_sha256",
]
COLUMNS += ["torch", "rounding_values", "log", "code_sha256", "mixed_code", "correct_file", "images_processed"]
COLUMNS += ["machine", "cores", "load_start", "load_end"]
BATCHES = ("1", "32")  # images a call, of which the latency of an ONNX file is measured
COLUMNS += ["onnx_top1", "onnx_equal", "onnx_largest_difference", "onnx_equal_float64", "onnx_bytes", "onnx_fp32_bytes"]
COLUMNS += ["onnx_bits_per_weight", *(f"onnx_{of}ms_{batch}" for batch in BATCHES for of in ("", "fp32_"))]
COLUMNS += ["onnx_load_ms", "onnx_fp32_load_ms", "onnx_switch_ms", "onnx_peak_mb", "onnx_fp32_peak_mb"]
WHOLE = ["iterations", "iterations_all", "calibration_images", "images_used", "labels", "epochs", "switch_images"]
WHOLE += ["onnx_bytes", "onnx_fp32_bytes"]
WHOLE += ["peak_mb", "threads", "correct", "images", "rounding_values", "images_processed", "cores"]
ITERATIONS = {"steps": "iterations", "activation_steps": "activation_iterations"}  # in older records
SUMMED = {"bits_per_weight": "bits_per_weight", "seconds": "seconds_all", "cpu_seconds": "cpu_seconds_all"}
MULTI = "multi"  # label of a run for all widths at once
NAME = re.compile(r"(?P<backbone>[^/]+)/(?P<method>[^/]+)/(?P<variant>[^/]+)/(?P<label>[^/]+)/seed(?P<seed>\d+)")


def rows_of_record(path: Path) -> list[dict]:
    """The rows of one record: what it measured, every protocol field and what it cost."""
    record = json.loads(path.read_text())
    run, protocol, cost, machine = (record[key] for key in ("run", "protocol", "cost", "environment"))
    shared = {f"protocol_{ITERATIONS.get(key, key)}": value for key, value in protocol.items()}
    shared |= {key: run[key] for key in KEYS}
    shared |= {
        "fp_top1": record["fp_top1"],
        "status": "done",
        "split": record["split"],
        "dataset": run.get("dataset"),
        "iterations": iterations_of(protocol) or 0,
        "iterations_all": iterations_of(record.get("training", {}))
        or sum(iterations_of(unit) or math.nan for unit in record["units"]),
        # none where nothing is rounded by learning, or where an older record does not say
        "rounding_values": sum(sum(unit.get("h_after") or []) for unit in record["units"]) or None,
        "calibration_images": run.get("calibration_images", 0),
        "images_used": cost.get("images", run.get("calibration_images", 0)),  # older records do not say
        "labels": cost.get("labels", 0),
        "epochs": cost.get("epochs"),
        "bits_per_weight": record.get("bits_per_weight"),  # older records do not say
        "seconds": round(cost["seconds"], 1),
        "cpu_seconds": cost.get("cpu_seconds"),
        "evaluation_seconds": round(cost["evaluation_seconds"], 1),
        "peak_mb": round(cost["peak_mb"]),
        "device": machine["device"],
        "threads": machine["threads"],
        "commit": record["commit"],
        "weights_sha256": record["sha256"]["weights"],
        "model_sha256": record["sha256"].get("model"),  # the FP network has none
        "torch": machine["torch"],
        "code_sha256": record.get("code_sha256"),  # older records do not say
        "correct_file": kept_answers(path, record),
        "images_processed": images_processed(run, protocol, cost),
        "machine": machine.get("device_name"),
        "cores": machine.get("cores"),
        "load_start": cost.get("load_start"),
        "load_end": cost.get("load_end"),
    }
    groups = [width for group in (run.get("groups") or {}).values() for width in group]
    files = onnx_columns(path)
    return [
        shared
        | ({} if line.get("mode") else files.get(line["width"], {}))
        | {key: line[key] for key in MEASURED}
        | {"in_groups": line["width"] in groups, "variant": variant_of(run["variant"], line)}
        # a method without BatchNorm to re-estimate switches without an image
        | {"switch_images": line.get("switch_images", 0), "switch_ms": line.get("switch_ms")}
        for line in record["results"]
    ]


def onnx_columns(path: Path) -> dict[str, dict]:
    """What the ONNX file of a record's run is worth, by width; nothing where it was not measured.

    Predictions and logits are held against those of the calibrated model, and of its simulation in float64.
    """
    measured = Path("/deploy/".join(path.as_posix().rsplit("/records/", 1)))
    if measured == path or not measured.exists():
        return {}
    record = json.loads(measured.read_text())
    size, latency, opening = record["size"], record["latency"], record["opening"]
    shared = {
        "onnx_bytes": size["bytes"],
        "onnx_fp32_bytes": size["fp32_bytes"],
        "onnx_bits_per_weight": size["bits_per_weight"],
        "onnx_switch_ms": latency["1"]["switching"]["extra"],
        **{f"onnx_fp32_ms_{batch}": latency[batch]["fp32"]["median"] for batch in BATCHES},
        **{f"onnx_{of}load_ms": opening[name]["ms"] for of, name in (("", "file"), ("fp32_", "fp32"))},
        **{f"onnx_{of}peak_mb": opening[name].get("peak_mib") for of, name in (("", "file"), ("fp32_", "fp32"))},
    }
    return {
        line["width"]: shared
        | {
            "onnx_top1": line["top1"],
            "onnx_equal": line["model"]["equal"],
            "onnx_largest_difference": line["model"]["largest_difference"],
            "onnx_equal_float64": line["simulation"]["equal"],
            **{f"onnx_ms_{batch}": latency[batch][line["width"]]["median"] for batch in BATCHES},
        }
        for line in record["results"]
    }


def kept_answers(path: Path, record: dict) -> str | None:
    """The file beside a record that says which images were classified correctly, None where there is none.

    Exits with a sentence where the file is not the one that the record was written with.
    """
    kept = path.with_suffix(".correct.safetensors")
    expected = record["sha256"].get("correct")
    if expected is None or not kept.exists():
        return None
    if hashlib.sha256(kept.read_bytes()).hexdigest() != expected:
        sys.exit(f"error: {kept} is not the file that {path.name} was written with. Remove both and evaluate again.")
    return str(kept)


def images_processed(run: dict, protocol: dict, cost: dict) -> int | None:
    """How many images went through the network, or through every block in turn, to learn; None where nothing is.

    An epoch processes every training image once, an iteration its batch at every width that it draws: one of a group.
    """
    if cost.get("epochs"):
        return cost["epochs"] * cost["images"]
    if not iterations_of(protocol) or "batch_size" not in protocol:
        return None
    drawn = len(run["groups"]) if run["label"] == MULTI and run.get("groups") else 1
    return iterations_of(protocol) * protocol["batch_size"] * drawn


def mixed_code(table: pd.DataFrame) -> pd.Series:
    """Of every row, why those of its method and backbone may not be of one code state; empty where they are.

    They are where all of them have the same code_sha256; a network's own code is a part of it.
    """

    def told(hashes: pd.Series) -> str:
        if hashes.isna().all():
            return "code not recorded"
        states = f"{hashes.nunique()} code states" if hashes.nunique() > 1 else ""
        return ", ".join(filter(None, [states, "some not recorded" if hashes.isna().any() else ""]))

    done = table[table.status == "done"]
    keys = ["origin", "backbone", "method"]
    said = done.groupby(keys).code_sha256.agg(told).to_dict()
    return pd.Series([said.get(key, "") for key in table[keys].itertuples(index=False, name=None)], table.index)


def for_all_widths(table: pd.DataFrame) -> pd.DataFrame:
    """The table with what all widths of the bit groups take together.

    Runs of one width each have the sum of their bits a weight, as their models are stored apart, and of their seconds;
    it is unknown where one run's is. A run for all widths is its own sum.
    """
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *SUMMED, "label", "in_groups"])))
    keys = ["origin", "backbone", "method", "variant", "seed"]
    apart = (table.label != MULTI) & table.in_groups.eq(True)
    runs = table[apart].drop_duplicates([*keys, "label"])
    sums = runs.groupby(keys)[list(SUMMED)].agg(lambda values: values.sum(skipna=False))
    rows = pd.MultiIndex.from_frame(table[keys])
    for name, total in SUMMED.items():
        together = pd.Series(sums[name].reindex(rows).to_numpy(), table.index)
        table[total] = together.where(apart, table[name])
    return table


def iterations_of(part: dict) -> int | None:
    """The iterations that a part of a record names, under today's name or that of older records."""
    return part.get("iterations", part.get("steps"))


def variant_of(variant: str, line: dict) -> str:
    """The variant of a result; one that was measured another way than the method's own is a variant of its own."""
    return f"{variant}+{line['mode']}" if line.get("mode") else variant


def is_missing(root: Path, name: str) -> bool:
    """True where a run has no record, or one that outlived its model: the calibration failed since."""
    folder = root / "models" / name
    outlived = (root / "logs" / "quantize" / f"{name}.log").exists() and not (folder / "model.json").exists()
    return outlived or not (root / "records" / f"{name}.json").exists()


def rows_of_missing(root: Path, name: str, widths: list[str]) -> list[dict]:
    """The rows of a run without a record."""
    run = NAME.fullmatch(name).groupdict()
    logs = [root / "logs" / stage / f"{name}.log" for stage in ("quantize", "evaluate")]
    log = max((log for log in logs if log.exists()), key=lambda log: log.stat().st_mtime, default=None)
    rows = []
    for width in widths:
        w_bits, a_bits = map(int, re.fullmatch(r"W(\d+)A(\d+)", width).groups())
        rows.append(run | {"w_bits": w_bits, "a_bits": a_bits, "status": "failed" if log else "not run", "log": log})
    return rows


def also_measured(rows: list[dict]) -> list[dict]:
    """Rows of missing runs again, for every other way in which runs of their method and variant were measured."""

    def kind(row: dict) -> tuple:
        return row["backbone"], row["method"], row["variant"].partition("+")[0]

    ways: dict[tuple, dict[str, None]] = {}
    for row in rows:
        if "+" in row["variant"]:
            ways.setdefault(kind(row), {})[row["variant"]] = None
    missing = [row for row in rows if row["status"] != "done"]
    return [row | {"variant": way} for row in missing for way in ways.get(kind(row), ())]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--partial", action="store_true")
    parser.add_argument("--own", nargs="*", default=[])
    parser.add_argument("--published", nargs="*", default=[])
    args = parser.parse_args(argv)
    rows = []
    for item in args.own:
        name, _, widths = item.partition(":")
        if args.partial and is_missing(args.root, name):
            found = rows_of_missing(args.root, name, widths.split(","))
        else:
            found = rows_of_record(args.root / "records" / f"{name}.json")
        rows += [row | {"origin": "own"} for row in found]
    root, *names = args.published or [""]
    for item in names:
        found = rows_of_record(Path(root, "records", f"{item.partition(':')[0]}.json"))
        rows += [row | {"origin": "published"} for row in found]
    table = pd.DataFrame(rows + also_measured(rows))
    table = for_all_widths(table)
    table["mixed_code"] = mixed_code(table.reindex(columns=COLUMNS))
    beside = args.out.parent  # what files are named from
    named = table.reindex(columns=["correct_file"]).correct_file
    table["correct_file"] = [os.path.relpath(path, beside) if isinstance(path, str) else None for path in named]
    whole = [c for c in WHOLE if c in table]
    table[whole] = table[whole].astype("Int64")  # rows of missing runs make pandas take them for floating point
    extra = sorted(set(table.columns) - set(COLUMNS))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    table.reindex(columns=[*COLUMNS, *extra]).to_csv(args.out, index=False)
    print(f"{len(table)} rows")


if __name__ == "__main__":
    main()
