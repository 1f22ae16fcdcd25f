"""The tidy CSV -> the figure of top-1 against bit-width for every method.

One panel a backbone for the widths of its bit groups, and one for the other widths that were run.

    accuracy.py --runs results/digits/runs.csv --out results/digits/figures

The mean over seeds with a band of ± one standard deviation; written as PDF, SVG and PNG.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from style import label_of, legend, save, style_of
from tables import method_order, note_of, runs_and_folder

VARIANT_MARKERS = "d<>hp8vs^*PX1234"
DEPTH = 15  # points below the ceiling that a panel shows at most, but for PTMQ


def draw_line(
    axes, method: str, variant: str, others: list[str], x: list[float], points: pd.DataFrame, joined: bool
) -> None:
    """One method: the mean over seeds and a band or bar of one standard deviation; variants thin and hollow."""
    _, colour, marker, line = style_of(method)
    style = {"color": colour, "marker": marker, "linestyle": line}
    if variant != "default":
        marker = VARIANT_MARKERS[others.index(variant) % len(VARIANT_MARKERS)]
        style |= {"marker": marker, "linestyle": ":", "markerfacecolor": "none", "linewidth": 1}
    if not joined:
        style["linestyle"] = "none"
    axes.plot(x, points["mean"], label=label_of(method, variant), **style)
    spread = points["std"].fillna(0)
    if joined:
        axes.fill_between(x, points["mean"] - spread, points["mean"] + spread, color=colour, alpha=0.2, linewidth=0)
    else:
        axes.errorbar(x, points["mean"], spread, color=colour, linestyle="none", capsize=3)


def draw(axes, runs: pd.DataFrame, backbone: str, in_groups: bool) -> None:
    """One panel: every method of one backbone, FP as a horizontal line.

    The widths of the bit groups are joined by lines; others have nothing between them.
    """
    runs = runs[(runs.backbone == backbone) & (runs.status == "done")]
    fp = runs[runs.method == "fp32"].top1
    quantized = runs[(runs.method != "fp32") & (runs.in_groups == in_groups)]
    widths = quantized[["w_bits", "a_bits"]].drop_duplicates().sort_values(["w_bits", "a_bits"])
    place = {width: x for x, width in enumerate(widths.itertuples(index=False, name=None))}
    shown, whole = [fp.mean()] if len(fp) else [], []
    floor_alone = quantized.method.str.startswith("nearest").all()
    drawn = sorted(
        quantized.groupby(["method", "variant"]), key=lambda item: (method_order(item[0][0]), item[0][1] != "default")
    )
    for number, ((method, variant), lines) in enumerate(drawn):
        points = lines.groupby(["w_bits", "a_bits"]).top1.agg(["mean", "std"]).reset_index()
        aside = (
            0 if in_groups else 0.6 * ((number + 0.5) / len(drawn) - 0.5)
        )  # side by side where no line tells them apart
        x = [place[w, a] + aside for w, a in zip(points.w_bits, points.a_bits, strict=True)]
        others = sorted(set(quantized[quantized.method == method].variant) - {"default"})
        draw_line(axes, method, variant, others, x, points, joined=in_groups)
        # the floor may be chance, and so may another way to run a model: shown as far as the axis goes
        if not (method.startswith("nearest") or "+" in variant) or floor_alone:
            shown += list(points["mean"])
        if method == "ptmq":
            whole += list(points["mean"])
    if len(fp):
        axes.axhline(fp.mean(), color="black", linewidth=1, linestyle="-.", label=f"FP32 ({fp.mean():.2f} %)")
    if shown:
        bottom = min([max(min(shown), max(shown) - DEPTH), *whole])
        margin = max(0.2, 0.08 * (max(shown) - bottom))
        axes.set_ylim(bottom - margin, max(shown) + margin)
        axes.set_title(f"{backbone}, {int(runs.images.iloc[0]):,} {runs.split.iloc[0]} images")
    axes.set_xticks(range(len(place)), [f"W{w}A{a}" for w, a in place])
    axes.set_ylabel("top-1 [%]")
    axes.grid(alpha=0.3)
    legend(axes, loc="upper left", bbox_to_anchor=(1, 1))


def main(argv: Sequence[str] | None = None) -> None:
    runs, out = runs_and_folder(__doc__, argv)
    shown = runs[(runs.status == "done") & (runs.method != "fp32")]
    contents = sorted(set(zip(shown.backbone, ~shown.in_groups.astype(bool), strict=True)))
    rows, columns = max(1, -(-len(contents) // 2)), max(1, min(2, len(contents)))
    entries = shown.drop_duplicates(["backbone", "method", "variant"]).groupby("backbone").size()
    size = (7.5 * columns, max(4.2, 0.23 * entries.max()) * rows)  # the legend beside a panel fits its height
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes, (backbone, beside) in zip(panels.flat, contents, strict=False):
        draw(axes, runs, backbone, in_groups=not beside)
    for axes in panels.flat[len(contents) :]:
        axes.remove()
    save(figure, out / "accuracy", note_of(runs.dataset))


if __name__ == "__main__":
    main()
