"""The tidy CSV -> the figure of accuracy: points below the FP network at every bit-width, in panels by kind of method.

    accuracy.py --runs results/digits/runs.csv --out results/digits/figures

A row a backbone, for the widths of its bit groups, and one for the other widths where there are several; a column a
kind of method, with rounding to nearest in grey in each. Where something was learned on a backbone, those on which
nothing was are left to the table. The mean over seeds with a band of one standard deviation; hollow with one seed. No
line passes a width that was not measured. Written as PDF, SVG and PNG.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import FuncFormatter
from style import label_of, save, style_of
from tables import KINDS, NOTHING_LEARNED, kind_of, method_order, note_of, runs_and_folder

VARIANT_MARKERS = "d<>hp8vs^*PX1234"
FLOOR = "nearest_mse"  # in every panel, to compare across them
SMALLEST = 0.1  # points; the axis is linear below


def points_of(lines: pd.DataFrame, widths: pd.Index, fp: float) -> pd.DataFrame:
    """Points below FP at each of the widths: mean, std and count over seeds; NaN where it was not run."""
    found = lines.groupby(["w_bits", "a_bits"]).top1.agg(["mean", "std", "count"]).reindex(widths)
    return found.assign(mean=fp - found["mean"], std=found["std"].fillna(0))


def draw_line(axes, method: str, variant: str, others: list[str], points: pd.DataFrame, joined: bool) -> None:
    """One method: its mean and a band or bar of one standard deviation; variants thin, one seed hollow."""
    _, colour, marker, line = style_of(method)
    style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 5}
    if variant != "default":
        marker = VARIANT_MARKERS[others.index(variant) % len(VARIANT_MARKERS)]
        style |= {"marker": marker, "linestyle": ":", "linewidth": 1}
    if (points["count"].dropna() <= 1).all():
        style["markerfacecolor"] = "white"
    x = range(len(points))
    axes.plot(x, points["mean"], label=label_of(method, variant), **(style if joined else style | {"linestyle": ""}))
    if joined:
        low, high = points["mean"] - points["std"], points["mean"] + points["std"]
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    else:
        axes.errorbar(x, points["mean"], points["std"], color=colour, linestyle="none", capsize=3)


def draw(axes, runs: pd.DataFrame, widths: pd.Index, fp: float, joined: bool) -> None:
    """One panel: the methods of `runs`, on the floor of all panels."""
    groups = sorted(runs.groupby(["method", "variant"]), key=lambda item: (method_order(item[0][0]), item[0][1]))
    for (method, variant), lines in groups:
        others = sorted(set(runs[runs.method == method].variant) - {"default"})
        draw_line(axes, method, variant, others, points_of(lines, widths, fp), joined)
    axes.set_yscale("symlog", linthresh=SMALLEST, linscale=0.5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.set_xticks(range(len(widths)), [f"W{w}A{a}" for w, a in widths])
    axes.axhline(0, color="black", linewidth=1, linestyle="-.")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)


def rows_of(runs: pd.DataFrame) -> list[tuple[str, bool]]:
    """The rows of the figure: backbone, and whether they are of the widths of its bit groups.

    One width alone outside the groups compares with nothing beside it: it is left to the table.
    """
    widths = runs.drop_duplicates(["backbone", "w_bits", "a_bits"]).astype({"in_groups": bool})
    counts = widths.groupby(["backbone", "in_groups"]).size()
    rows = [row for row, number in counts.items() if row[1] or number > 1 or len(counts[row[0]]) == 1]
    return sorted(rows, key=lambda row: (row[0], -row[1]))


def main(argv: Sequence[str] | None = None) -> None:
    runs, out = runs_and_folder(__doc__, argv)
    runs = runs[runs.status == "done"]
    fp = runs[runs.method == "fp32"].groupby("backbone").top1.mean()
    quantized = runs[(runs.method != "fp32") & runs.backbone.isin(fp.index)]
    if quantized.empty:
        return save(plt.figure(), out / "accuracy", "nothing but the FP network was run")
    kinds = {key: kind_of(lines) for key, lines in quantized.groupby(["method", "variant"])}
    kind = pd.Series(list(zip(quantized.method, quantized.variant, strict=True)), quantized.index).map(kinds)
    learned = quantized.backbone[kind != NOTHING_LEARNED].unique()
    if len(learned):
        quantized = quantized[quantized.backbone.isin(learned)]
        kind = kind[quantized.index]
    columns, rows = [name for name in KINDS if name in set(kind)], rows_of(quantized)
    entries = quantized.assign(kind=kind).drop_duplicates(["backbone", "method", "variant"])
    longest = entries.groupby(["backbone", "kind"]).size().max()
    size = (4.6 * len(columns), (3.2 + 0.1 * longest) * len(rows))  # legends lie below, in two columns
    figure, panels = plt.subplots(
        len(rows), len(columns), figsize=size, squeeze=False, layout="constrained", sharey="row", sharex="row"
    )
    for line, (backbone, inside) in zip(panels, rows, strict=True):
        mine = quantized[(quantized.backbone == backbone) & (quantized.in_groups == inside)]
        widths = mine.set_index(["w_bits", "a_bits"]).index.unique().sort_values()
        floor = points_of(mine[mine.method == FLOOR], widths, fp[backbone])
        for axes, name in zip(line, columns, strict=True):
            of_kind = mine[kind.loc[mine.index] == name]
            if of_kind.empty:
                axes.set_axis_off()
                continue
            named = label_of(FLOOR, "default") if FLOOR in set(mine.method) - set(of_kind.method) else None
            axes.plot(range(len(widths)), floor["mean"], color="#bbbbbb", linewidth=3, zorder=0, label=named)
            draw(axes, of_kind, widths, fp[backbone], inside)
            axes.set_title(f"{backbone}: {name}", fontsize="medium")
        line[0].set_ylim(1.3 * max(fp[backbone] - mine.top1.min(), SMALLEST), -3 * SMALLEST)
        images = f"{int(mine.images.iloc[0]):,} {mine.split.iloc[0]} images"
        line[0].set_ylabel(f"points below FP32 ({fp[backbone]:.2f} %)\n{images}", fontsize="small")
    save(figure, out / "accuracy", note_of(runs.dataset))


if __name__ == "__main__":
    main()
