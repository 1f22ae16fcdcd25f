"""The tidy CSV -> the figure of what accuracy costs: top-1 at the two lowest widths against seconds for all widths.

cost.py --runs results/cifar10/runs.csv --out results/cifar10/figures
"""

import matplotlib.pyplot as plt
import pandas as pd
from style import OTHER, STYLES, label_of, order, save
from tables import KEYS, cost, runs_and_folder, with_width

WIDTHS = 2  # of the bit groups, lowest first


def draw(axes, runs: pd.DataFrame, seconds: pd.Series, width: str) -> None:
    """One panel: a point a method, with the standard deviation over seeds."""
    at = runs[(runs.width == width) & (runs.variant == "default") & (runs.method != "fp32")]
    for method, part in sorted(at.groupby("method"), key=lambda item: order(item[0])):
        colour, marker, _ = STYLES.get(method, OTHER)
        x = seconds.get((part.backbone.iloc[0], method, "default"))
        if x is not None:
            axes.errorbar(
                x,
                part.top1.mean(),
                part.top1.std() if len(part) > 1 else 0,
                color=colour,
                marker=marker,
                linestyle="none",
                capsize=3,
                label=label_of(method),
            )
    axes.set_xscale("log")
    axes.set_xlabel("seconds to serve all widths")
    axes.set_ylabel("top-1 [%]")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small", loc="best")


def main() -> None:
    runs, out = runs_and_folder(__doc__)
    seconds = cost(runs).set_index(KEYS).seconds_all
    done = with_width(runs[(runs.status == "done")]).astype({"in_groups": bool})
    panels = []
    learned = done[done.in_groups & (done.steps > 0)]
    for backbone, part in learned.groupby("backbone"):
        panels += [(backbone, width) for width in part.sort_values("w_bits").width.drop_duplicates()[:WIDTHS]]
    rows, columns = max(1, -(-len(panels) // 2)), 2
    figure, axes = plt.subplots(rows, columns, figsize=(12, 4 * rows), squeeze=False, layout="constrained")
    for axis, (backbone, width) in zip(axes.flat, panels, strict=False):
        draw(axis, done[done.backbone == backbone], seconds, width)
        axis.set_title(f"{backbone}, {width}")
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    save(figure, out / "cost")


if __name__ == "__main__":
    main()
