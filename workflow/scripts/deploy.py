"""Records of exported files -> the table of what they are worth, and accuracy against latency and size.

    deploy.py --out results/digits --records results/digits/deploy/digits_resnet/nested/default/multi/seed0.json ...

Written to tables/deploy.* and figures/deploy.*.
"""

import math
from collections.abc import Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
from style import label_of, save, style_of
from tables import VNNI, records_and_folder, write

FILLS = ("full", "none", "left", "bottom")  # of markers, by network: colour and form are the method's
LINES = ("-", "--", ":", "-.")  # of FP32, by network
KERNELS = ("QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat")


def rows_of(record: dict) -> list[dict]:
    """A row a width."""
    run, size, environment = record["run"], record["size"], record["environment"]
    rows = []
    for line in record["results"]:
        times = {count: (each[line["width"]], each["fp32"]) for count, each in record["latency"].items()}
        rows.append({
            "backbone": run["backbone"], "method": run["method"], "variant": run["variant"], "seed": run["seed"],
            "width": line["width"], "top-1 of the file": line["top1"], "top-1 of the model": line["model_top1"],
            "equal [%]": line["model"]["equal"], "equal to float64 [%]": line["simulation"]["equal"],
            "top-1 in float64": line["simulation"].get("top1", math.nan),
            "images in float64": line["simulation"]["images"],
            "file [KiB]": size["bytes"] / 1024, "FP32 file [KiB]": size["fp32_bytes"] / 1024,
            "bits a weight, all widths": size["bits_per_weight"],
            **{f"ms, batch {count}": own["median"] for count, (own, _) in times.items()},
            **{f"times FP32, batch {count}": fp["median"] / own["median"] for count, (own, fp) in times.items()},
            "ms to load": record["opening"]["file"]["ms"], "ms to load FP32": record["opening"]["fp32"]["ms"],
            **{f"MiB {when}": record["opening"]["file"].get(key, math.nan)
               for when, key in (("loaded", "mib"), ("at the peak", "peak_mib"))},
            "ms of a switch": record["latency"]["1"]["switching"]["extra"],
            "integer kernels": sum(record["kernels"]["integer"].get(name, 0) for name in KERNELS)
            // record["kernels"]["branches"],
            "in floating point": len(record["floats"]),
            "threads": environment["threads"], "CPU": environment["cpu"],
            "VNNI": VNNI[environment["vnni"]],
        })  # fmt: skip
    return rows


def table_of(records: list[dict]) -> pd.DataFrame:
    """All rows, in the order of networks and methods."""
    table = pd.DataFrame([row for record in records for row in rows_of(record)])
    return table.sort_values(["backbone", "method", "variant", "seed"], kind="stable").reset_index(drop=True)


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers with the digits that mean something."""
    digits = {"top-1": 2, "equal": 2, "KiB": 0, "bits": 1, "ms": 2, "MiB": 1, "times": 2}
    shown = table.copy()
    for column in table.select_dtypes("float"):
        places = next(count for begin, count in digits.items() if begin in column)
        shown[column] = table[column].map(f"{{:.{places}f}}".format).where(table[column].notna(), "")
    return shown


def draw(table: pd.DataFrame) -> plt.Figure:
    """Accuracy against the latency of one image, and against the size of the file, a panel each; FP32's as lines."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained", sharey=True)
    fills = dict(zip(table.backbone.unique(), cycle(FILLS), strict=False))
    for (backbone, method, variant), part in table.groupby(["backbone", "method", "variant"], sort=False):
        _, colour, marker, _ = style_of(method)
        mean = part.groupby("width", sort=False).mean(numeric_only=True)
        look = {"color": colour, "fillstyle": fills[backbone], "label": f"{backbone}, {label_of(method, variant)}"}
        left.plot(mean["ms, batch 1"], mean["top-1 of the file"], marker, **look)
        right.plot(mean["file [KiB]"], mean["top-1 of the file"], marker, **look)
        for width, point in mean.iloc[[0, -1]].iterrows():  # the lowest and the highest: others lie between
            place = point["ms, batch 1"], point["top-1 of the file"]
            left.annotate(str(width), place, (9, -3), textcoords="offset points", fontsize="x-small")
    for (backbone, part), line in zip(table.groupby("backbone", sort=False), cycle(LINES), strict=False):
        fp32 = (part["ms, batch 1"] * part["times FP32, batch 1"]).mean(), part["FP32 file [KiB]"].mean()
        for axes, place in zip((left, right), fp32, strict=True):
            axes.axvline(place, color="#888888", linestyle=line, label=f"{backbone}, FP32")
    left.set(xlabel="latency of one image [ms]", ylabel="top-1 [%]")
    right.set(xlabel="file, all widths in one [KiB]")
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    right.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    records, out = records_and_folder(__doc__, argv)
    table = table_of(records)
    (out / "tables").mkdir(parents=True, exist_ok=True)
    write(as_text(table), out / "tables" / "deploy", by=None)
    save(draw(table), out / "figures" / "deploy")


if __name__ == "__main__":
    main()
