"""Run records made here, and the reports that the workflow's scripts make of them, in this process."""

import importlib
import io
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import matplotlib.pyplot as plt
import pandas as pd

GROUPS = {"low": ["W3A3"], "medium": ["W5A5"], "high": ["W8A8"]}
FP = {"W32A32": 92.0}
BOTH = {"W3A3": 80.0, "W8A8": 91.0}


def script(name: str, *arguments, given: str | None = None) -> None:
    """Call a script of the workflow with the arguments of a command line; `given` is its standard input."""
    argv = [name, *map(str, arguments)]
    with patch.object(sys, "argv", argv), patch.object(sys, "stdin", io.StringIO(given)):
        importlib.import_module(name).main()


def lines_of(top1: dict[str, float]) -> list[dict]:
    """Results by width, as the evaluation writes them."""
    bits = {width: tuple(map(int, width[1:].split("A"))) for width in top1}
    return [
        {"width": width, "w_bits": bits[width][0], "a_bits": bits[width][1], "top1": value, "kl": 0.1,
         "correct": int(value), "images": 100}
        for width, value in top1.items()
    ]  # fmt: skip


def record(method: str, top1: dict[str, float], seed: int = 0, label: str = "multi", **changes) -> dict:
    """A run record as the evaluation stage writes it; changes: of its parts, such as `cost`, merged into them."""
    unit = {"unit": "stem", "iterations": 5, "loss": [2.0, 1.0], "error_before": {"W3A3": 0.2},
            "error_after": {"W3A3": 0.1}}  # fmt: skip
    body = {
        "format": 1, "split": "test", "fp_top1": 92.0, "results": lines_of(top1),
        "run": {"backbone": "toy", "method": method, "variant": "default", "label": label, "seed": seed,
                "dataset": "digits", "calibration_images": 64, "profile": "p",
                "groups": None if method == "fp32" else GROUPS},
        "protocol": {} if method == "fp32" else {"iterations": 5, "batch_size": 8, "lr_rounding": 0.1},
        "cost": {"seconds": 10.0, "cpu_seconds": 10.0, "peak_mb": 3.0, "evaluation_seconds": 1.0},
        "sha256": {"weights": "ab", "data": {}},
        "environment": {"torch": "2", "device": "cpu", "threads": 1, "device_name": "a processor", "cores": 2},
        "commit": "0123", "code_sha256": "aa", "units": [unit] if method == "ptmq" else [],
    }  # fmt: skip
    for key, value in changes.items():
        body[key] = body[key] | value if isinstance(value, dict) and key in body else value
    return body


def frontier_record(seed: int) -> dict:
    """Of the mixed-precision stage: two uniform widths and two budgets; one more seed is a point better."""
    points = [
        {"kind": kind, "budget": budget, "average_bits": bits, "kib": 10 * bits, "bit_operations": int(1e9 * bits),
         "top1": top1 + seed, "kl": 0.1, "correct": 85, "images": 100}
        for kind, budget, bits, top1 in (
            ("uniform", "W3A3", 3.0, 80.0), ("uniform", "W8A8", 8.0, 91.0), ("mixed", "3.50", 3.5, 85.0),
            ("mixed", "5.50", 5.5, 90.5))
    ]  # fmt: skip
    switching = {"switch_ms": 0.1, "switch_images": 0, "prepared_mib": 2.0, "adaptive_bn_ms": 1500.0,
                 "adaptive_bn_images": 12800}  # fmt: skip
    body = record("ptmq", {}, seed)
    kept = ("run", "protocol", "environment", "commit", "fp_top1", "split", "sha256")
    return {key: body[key] for key in kept} | {"points": points, "switching": switching}


def deployed(method: str, top1: float) -> dict:
    """A record as `ptmq.suite.deploy.measure` writes it."""
    times = {"median": 2.0, "low": 1.0, "high": 3.0}
    latency = {
        "W4A4": times,
        "fp32": {**times, "median": 5.0},
        "switching": {"same": 2.0, "other": 2.25, "extra": 0.25},
    }
    line = {"width": "W4A4", "top1": top1, "model_top1": top1 + 1, "images": 100,
            "model": {"images": 100, "equal": 99.0, "largest_difference": 0.1},
            "simulation": {"images": 50, "equal": 100.0, "top1": top1, "largest_difference": 0.0}}  # fmt: skip
    return {
        "run": {"backbone": "toy", "method": method, "variant": "default", "seed": 0}, "results": [line],
        "size": {"bytes": 2048, "fp32_bytes": 8192, "bits_per_weight": 9.5}, "latency": {"1": latency, "32": latency},
        "opening": {"file": {"ms": 7.0, "mib": 3.0, "peak_mib": 4.0}, "fp32": {"ms": 1.0}}, "floats": [["fc", "why"]],
        "kernels": {"integer": {"QLinearConv": 12, "QGemm": 2, "QLinearAdd": 4}, "float": {}, "branches": 2},
        "environment": {"threads": 1, "cpu": "a CPU", "vnni": True},
    }  # fmt: skip


def on_dataset(results: "Results", name: str) -> "Results":
    """The same results, as if they were of another dataset."""
    for path in (results.root / "records").rglob("*.json"):
        body = json.loads(path.read_text())
        body["run"]["dataset"] = name
        path.write_text(json.dumps(body))
    return results


class Results:
    """A folder of results, with its runs in the order of the rules."""

    def __init__(self, root: Path):
        self.root, self.names = root, []

    def path(self, method: str, seed: int = 0, label: str = "multi", variant: str = "default", kind="records") -> Path:
        """Where a record of the toy lies."""
        return self.root / f"{kind}/toy/{method}/{variant}/{label}/seed{seed}.json"

    def add(self, body: dict, widths: str | None = None) -> Path:
        """Write a record; widths: those that were asked for, where they are not those that it has."""
        run = body["run"]
        name = f"{run['backbone']}/{run['method']}/{run['variant']}/{run['label']}/seed{run['seed']}"
        asked = widths or ",".join(dict.fromkeys(line["width"] for line in body["results"]))
        self.names.append(f"{name}:{asked}")
        path = self.root / "records" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(body))
        return path

    def collect(self, *options: str) -> pd.DataFrame:
        """The tidy table of all runs."""
        script("collect", "--root", self.root, "--out", self.root / "runs.csv", *options, "--own", *self.names)
        return pd.read_csv(self.root / "runs.csv", keep_default_na=False)

    def log(self, uri: str) -> None:
        """Log all records below a parent `accuracy`, and those in mixed/ below a parent `frontier`."""
        records, mixed = (
            sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(f"{folder}/**/*.json"))
            for folder in ("records", "mixed")
        )
        parents = {
            "accuracy": {"artifacts": ["runs.csv"], "records": records},
            "frontier": {"artifacts": [], "records": mixed},
        }
        script("log_mlflow", "--root", self.root, "--uri", uri, "--experiment", "p",
               "--out", self.root / "mlflow.json", given=json.dumps(parents))  # fmt: skip

    def table(self, name: str = "accuracy", *options: str) -> pd.DataFrame:
        """A table of them, its cells as text, by method."""
        self.collect(*options)
        script("tables", "--runs", self.root / "runs.csv", "--out", self.root / "tables")
        path = self.root / "tables" / f"{name}.csv"
        return pd.read_csv(path, dtype=str, keep_default_na=False).set_index("method")


@contextmanager
def figures(name: str):
    """The figures that a script would save, by the names of their files, labelled by their notes; nothing is written."""
    found = {}

    def save(figure, path, note=""):
        figure.set_label(note)
        found[path.name] = figure

    with patch.object(importlib.import_module(name), "save", save):
        yield found
    for figure in found.values():
        plt.close(figure)


def drawn(axes) -> dict[str, tuple[list, list]]:
    """The lines of a panel by their labels: x and y."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}
