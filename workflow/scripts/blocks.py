"""Run records -> two figures of what happens in the blocks: reconstruction error, and h(V) before and after learning.

    blocks.py --out results/cifar10/figures --records RECORD ...

The error of a block is the mean squared error of its output on what the quantized blocks before it give, drawn over
that of QDrop, or of PTMQ where QDrop was not run; methods that reconstruct layers have none at these widths. Written to
blocks.* and, of PTMQ, rounding.*; the mean over the seeds with a band of one standard deviation.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from style import label_of, save, style_of
from tables import method_order, note_of, records_and_folder

COLUMNS = ["backbone", "method", "seed", "unit", "width", "after", "h_before", "h_after"]
REFERENCES = ("qdrop", "ptmq")  # errors are drawn over those of the first of them that was run
SHOWN = 2  # widths of the bit groups, lowest first


def units(records: list[dict]) -> pd.DataFrame:
    """One row a record, unit and width, with the error after learning."""
    rows = []
    for record in records:
        run = record["run"]
        shown = sorted(width for group in run["groups"].values() for width in group)[:SHOWN]
        for unit in record["units"]:
            for width in set(shown) & set(unit["error_after"]):
                rows.append({
                    "backbone": run["backbone"], "method": run["method"], "seed": run["seed"], "unit": unit["unit"],
                    "width": width, "after": unit["error_after"][width],
                    "h_before": unit.get("h_before") or None, "h_after": unit.get("h_after") or None,
                })  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def draw_errors(axes, rows: pd.DataFrame) -> None:
    """Errors after learning, block by block, of every method that learns blocks at this width, over the reference's."""
    rows = rows.drop_duplicates(["method", "seed", "unit"], keep="last")  # of two passes the second
    reference = next((name for name in REFERENCES if name in set(rows.method)), rows.method.iloc[0])
    base = rows[rows.method == reference].groupby("unit", sort=False).after.mean()
    names = list(base.index)
    for method, part in sorted(rows.groupby("method"), key=lambda item: method_order(item[0])):
        _, colour, marker, line = style_of(method)
        found = part.assign(ratio=part.after / part.unit.map(base)).groupby("unit").ratio.agg(["mean", "std"])
        found = found.reindex(names)  # a line breaks at a block that the method does not have
        low = (found["mean"] - found["std"].fillna(0)).clip(lower=found["mean"] / 10)  # the axis is logarithmic
        axes.plot(
            names, found["mean"], label=label_of(method), color=colour, marker=marker, linestyle=line, markersize=4
        )
        axes.fill_between(names, low, found["mean"] + found["std"].fillna(0), color=colour, alpha=0.2, linewidth=0)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize="small")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(plt.FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(plt.FuncFormatter(lambda y, _: f"{y:g}"))
    axes.tick_params(axis="y", which="minor", labelsize="x-small")
    axes.set_ylabel(f"squared error of the output, over that of {label_of(reference)}")
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


def main(argv: Sequence[str] | None = None) -> None:
    records, out = records_and_folder(__doc__, argv)
    rows = units(records)
    backbones = list(rows.backbone.unique())
    count = max(1, len(backbones))
    figure, axes = plt.subplots(count, SHOWN, figsize=(7 * SHOWN, 4.5 * count), squeeze=False, layout="constrained")
    if not backbones:
        axes[0, 0].text(0.5, 0.5, "no method reconstructs blocks", ha="center")
    for line, backbone in zip(axes, backbones, strict=False):
        mine = rows[rows.backbone == backbone]
        widths = sorted(mine.width.unique())
        for axis, width in zip(line, widths, strict=False):
            draw_errors(axis, mine[mine.width == width])
            axis.set_title(f"{backbone}, {width}")
        for axis in line[len(widths) :]:
            axis.set_axis_off()
    note = note_of(record["run"].get("dataset") for record in records)
    save(figure, out / "blocks", note)
    learned = rows[rows.h_after.notna() & (rows.method == "ptmq")]
    backbones = list(learned.backbone.unique())
    if not any(record["run"]["method"] == "ptmq" for record in records):
        return
    count = max(1, len(backbones))
    figure, axes = plt.subplots(1, count, figsize=(6 * count, 3.6), squeeze=False, layout="constrained")
    if not backbones:
        axes[0, 0].text(0.5, 0.5, "these records of PTMQ have no rounding values", ha="center")
    for axis, backbone in zip(axes.flat, backbones, strict=False):
        draw_rounding(axis, learned[learned.backbone == backbone])
        axis.set_title(f"{backbone}, PTMQ")
    save(figure, out / "rounding", note)


if __name__ == "__main__":
    main()
