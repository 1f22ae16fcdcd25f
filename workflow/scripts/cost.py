"""The tidy CSV -> the figure of what accuracy costs: top-1 at the two lowest widths against seconds of calibration.

A hollow point is one calibration, the full point beside it as many as serve all widths. What learns nothing and lies
far below the best stands on the lower edge, with its accuracy beside it.

cost.py --runs results/cifar10/runs.csv --out results/cifar10/figures
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import LogLocator
from style import label_of, save, style_of
from tables import KEYS, cost, method_order, note_of, runs_and_folder, with_width

WIDTHS = 2  # of the bit groups, lowest first
TENS_ALONE = 2000  # right over left end of an axis from which on only powers of ten have their number
DEPTH = 13  # points below the best down to which a panel's axis reaches, and further for methods that learn


def learned(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of methods that learn something, from images or from labels."""
    return runs[(runs.iterations > 0) | (runs.epochs > 0)]


def draw(axes, runs: pd.DataFrame, costs: pd.DataFrame, width: str) -> None:
    """One panel: two points a method, with the standard deviation over seeds."""
    at = runs[(runs.width == width) & runs.variant.isin(["default", "published"]) & (runs.method != "fp32")]
    methods = at.groupby(["method", "variant"])
    shown = methods.top1.agg(["mean", "std"]).fillna(0)
    lowest = min([shown["mean"].max() - DEPTH, *learned(at).groupby(["method", "variant"]).top1.mean()])
    for (method, variant), part in sorted(methods, key=lambda item: (method_order(item[0][0]), item[0][1])):
        key = (part.backbone.iloc[0], method, variant)
        if key not in costs.index:
            continue
        _, colour, marker, _ = style_of(method)
        one, every = costs.loc[key, ["seconds_each", "seconds_all"]]
        mean, spread = shown.loc[(method, variant), ["mean", "std"]]
        y = max(mean, lowest)
        axes.plot([one, every], [y, y], color=colour, linewidth=0.8)
        if one < every:
            axes.plot([one], [y], color=colour, marker=marker, markerfacecolor="white", linestyle="none")
        if mean < lowest:
            above = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "va": "bottom", "rotation": 90}
            axes.annotate(f"{mean:.1f}", (every, y), **above, color=colour, fontsize=8)
        else:
            axes.errorbar([every], [y], spread, color=colour, linestyle="none", capsize=3)
        axes.plot([every], [y], color=colour, marker=marker, linestyle="none", label=label_of(method, variant))
    if len(shown):
        top = (shown["mean"] + shown["std"]).max()
        bottom = max((shown["mean"] - shown["std"]).min(), lowest)
        margin = 0.08 * (top - bottom) + 0.1
        axes.set_ylim(bottom - margin, top + margin)
    axes.set_xscale("log")
    left, right = axes.get_xlim()
    # tens alone are one tick or none on a short axis; the others' numbers touch on a long one
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if right < TENS_ALONE * left else (1,)))
    axes.xaxis.set_major_formatter(plt.FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("seconds of calibration: hollow for one, full for all widths")
    axes.set_ylabel("top-1 [%]")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))  # inside it would hide points


def main(argv: Sequence[str] | None = None) -> None:
    runs, out = runs_and_folder(__doc__, argv)
    costs = cost(runs).set_index(KEYS)
    done = with_width(runs[(runs.status == "done")]).astype({"in_groups": bool})
    panels = []
    for backbone, part in learned(done[done.in_groups]).groupby("backbone"):
        panels += [(backbone, width) for width in part.sort_values("w_bits").width.drop_duplicates()[:WIDTHS]]
    rows, columns = max(1, -(-len(panels) // 2)), 2
    figure, axes = plt.subplots(rows, columns, figsize=(16, 4 * rows), squeeze=False, layout="constrained")
    for axis, (backbone, width) in zip(axes.flat, panels, strict=False):
        draw(axis, done[done.backbone == backbone], costs, width)
        axis.set_title(f"{backbone}, {width}")
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    save(figure, out / "cost", note_of(runs.dataset))


if __name__ == "__main__":
    main()
