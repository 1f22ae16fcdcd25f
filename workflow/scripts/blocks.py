"""Run records -> two figures of what happens in the blocks: reconstruction error, and h(V) before and after learning.

    blocks.py --root results/cifar10 --out results/cifar10/figures resnet20/ptmq/default/multi/seed0 ...

The error of a block is the mean squared error of its output on what the quantized blocks before it give. Written to
blocks.* and rounding.*; means over the seeds.
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from style import OTHER, STYLES, label_of, order, save

SHOWN = ("W3A3", "W4A4")  # widths of the error's panels, where a record has them


def units(root: Path, names: list[str]) -> pd.DataFrame:
    """One row a record, unit and width, with the error after learning."""
    rows = []
    for name in names:
        record = json.loads((root / "records" / f"{name}.json").read_text())
        run = record["run"]
        for unit in record["units"]:
            for width, after in unit["error_after"].items():
                rows.append({
                    "backbone": run["backbone"], "method": run["method"], "seed": run["seed"], "unit": unit["unit"],
                    "width": width, "after": after,
                    "h_before": unit.get("h_before") or None, "h_after": unit.get("h_after") or None,
                })  # fmt: skip
    return pd.DataFrame(rows)


def draw_errors(axes, rows: pd.DataFrame) -> None:
    """Error after learning, block by block, of every method that learns blocks at this width."""
    names = list(rows.unit.drop_duplicates())
    for method, part in sorted(rows.groupby("method"), key=lambda item: order(item[0])):
        colour, marker, line = STYLES.get(method, OTHER)
        after = part.groupby("unit", sort=False).after.mean()
        places = [names.index(unit) for unit in after.index]
        axes.plot(places, after, color=colour, marker=marker, linestyle=line, label=label_of(method))
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize="small")
    axes.set_yscale("log")
    axes.set_ylabel("mean squared error of the output")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def draw_rounding(axes, rows: pd.DataFrame) -> None:
    """Histogram of h(V) over all blocks, before and after learning."""
    rows = rows.drop_duplicates(["seed", "unit"])
    for column, style in (
        ("h_before", {"color": "#999999"}),
        ("h_after", {"color": "#D55E00", "fill": False, "hatch": "//"}),
    ):
        counts = [sum(values) for values in zip(*rows[column].dropna(), strict=True)]
        bins = [i / len(counts) for i in range(len(counts) + 1)]
        share = [100 * count / sum(counts) for count in counts]
        axes.stairs(share, bins, label=column.removeprefix("h_") + " learning", **({"fill": True} | style))
    axes.set_xlabel("h(V)")
    axes.set_ylabel("share of the weights [%]")
    axes.legend(fontsize="small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("names", nargs="+")
    args = parser.parse_args()
    rows = units(args.root, args.names)
    panels = [(b, w) for b in rows.backbone.unique() for w in SHOWN if ((rows.backbone == b) & (rows.width == w)).any()]
    figure, axes = plt.subplots(1, len(panels), figsize=(7 * len(panels), 4.5), squeeze=False, layout="constrained")
    for axis, (backbone, width) in zip(axes.flat, panels, strict=True):
        draw_errors(axis, rows[(rows.backbone == backbone) & (rows.width == width)])
        axis.set_title(f"{backbone}, {width}")
    save(figure, args.out / "blocks")
    learned = rows[rows.h_after.notna() & (rows.method == "ptmq")]
    backbones = list(learned.backbone.unique())
    figure, axes = plt.subplots(
        1, max(1, len(backbones)), figsize=(6 * max(1, len(backbones)), 3.6), squeeze=False, layout="constrained"
    )
    for axis, backbone in zip(axes.flat, backbones, strict=False):
        draw_rounding(axis, learned[learned.backbone == backbone])
        axis.set_title(f"{backbone}, PTMQ")
    save(figure, args.out / "rounding")


if __name__ == "__main__":
    main()
