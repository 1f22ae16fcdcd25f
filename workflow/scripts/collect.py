"""Run records -> one tidy CSV, a row for each backbone, method, variant, width and seed.

    collect.py --root results/digits --out results/digits/runs.csv --own NAME:WIDTHS ...
        [--published results/published/digits NAME:WIDTHS ...]

NAME is backbone/method/variant/label/seedN, WIDTHS are its widths. With --partial a missing record becomes
rows whose status is `failed` (its log exists, and is named) or `not run`. Rows of published records have the origin
`published`, others `own`.
"""

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

KEYS = ["backbone", "method", "variant", "label", "seed"]
MEASURED = ["w_bits", "a_bits", "top1", "kl", "correct", "images"]
COST = [
    "iterations",
    "iterations_all",
    "calibration_images",
    "images_used",
    "labels",
    "epochs",
    "switch_images",
    "switch_ms",
]
COST += ["seconds", "evaluation_seconds", "peak_mb", "device", "threads"]
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
    "torch",
    "rounding_values",
    "log",
]
WHOLE = [
    "iterations",
    "iterations_all",
    "calibration_images",
    "images_used",
    "labels",
    "epochs",
    "switch_images",
    "peak_mb",
]
WHOLE += ["threads", "correct", "images", "rounding_values"]
ITERATIONS = {"steps": "iterations", "activation_steps": "activation_iterations"}  # in older records
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
        "seconds": round(cost["seconds"], 1),
        "evaluation_seconds": round(cost["evaluation_seconds"], 1),
        "peak_mb": round(cost["peak_mb"]),
        "device": machine["device"],
        "threads": machine["threads"],
        "commit": record["commit"],
        "weights_sha256": record["sha256"]["weights"],
        "torch": machine["torch"],
    }
    groups = [width for group in (run.get("groups") or {}).values() for width in group]
    return [
        shared
        | {key: line[key] for key in MEASURED}
        | {"in_groups": line["width"] in groups, "variant": variant_of(run["variant"], line)}
        # a method without BatchNorm to re-estimate switches without an image
        | {"switch_images": line.get("switch_images", 0), "switch_ms": line.get("switch_ms")}
        for line in record["results"]
    ]


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
    whole = [c for c in WHOLE if c in table]
    table[whole] = table[whole].astype("Int64")  # rows of missing runs make pandas take them for floating point
    extra = sorted(set(table.columns) - set(COLUMNS))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    table.reindex(columns=[*COLUMNS, *extra]).to_csv(args.out, index=False)
    print(f"{len(table)} rows")


if __name__ == "__main__":
    main()
