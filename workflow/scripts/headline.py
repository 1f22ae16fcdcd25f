"""The tidy CSV -> the figure in front: what one calibration for all widths loses against one a width, and costs.

    headline.py --runs results/cifar10/runs.csv --out results/cifar10

A panel a network: top-1 minus that of QDrop, which is calibrated for each width alone, at 3, 4 and 5 bits, with 95 %
intervals; hollow with one seed. Two panels beside them: the stored bits a weight for all widths, and the CPU-seconds of
calibration over those of QDrop, where both were measured. Methods further than a few points below FP at the highest
width are left out: they were not trained to the end. A table has the same numbers. Written to figures/headline.* and
tables/headline.*.
"""

import math
from collections.abc import Sequence
from contextlib import suppress

import forest
import matplotlib.pyplot as plt
import pandas as pd
from intervals import Estimate
from paired import Missing, Runs, by
from style import label_of, save
from tables import FOR_EACH_WIDTH, KEYS, cost, kind_of, method_order, note_of, runs_and_folder, write

REFERENCE = "qdrop"
LIMIT = -12  # points: what lies further below is drawn at the edge
EVEN = 0.5  # points: the axis is linear so far from 0
FINISHED = 5  # points below FP at the highest width, at most


def rows_of(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Method and variant of every row: those that serve all widths with one calibration, in the order of the tables."""
    kinds = {key: kind_of(lines) for key, lines in runs.groupby(["method", "variant"])}
    highest = runs[runs.w_bits == runs.w_bits.max()]
    lost = (highest.fp_top1 - highest.top1).groupby([highest.method, highest.variant]).mean()
    left_out = {("nearest_minmax", "default"), *lost.index[lost > FINISHED]}
    shown = [key for key, kind in kinds.items() if kind != FOR_EACH_WIDTH and key not in left_out]
    return sorted((key for key in shown if "+" not in key[1]), key=lambda key: (method_order(key[0]), key[1]))


def differences(runs: Runs, rows: Sequence[tuple[str, str]]) -> list[dict[str, Estimate]]:
    """Of every row the difference to the reference at the lowest widths, {'W3A3': ...}; without what was not run."""
    lines: list[dict[str, Estimate]] = []
    for method, variant in rows:
        lines.append({})
        for width in runs.groups[: forest.WIDTHS]:
            with suppress(Missing):
                lines[-1][width] = runs.difference((method, width, variant), (REFERENCE, width))
    return lines


def draw_differences(axes, runs: Runs, found: Sequence[dict[str, Estimate]]) -> None:
    """One network: every method's difference to the reference, a point a width."""
    for number, width in enumerate(runs.groups[: forest.WIDTHS]):
        for row, line in enumerate(found):
            if width in line:
                forest.point(axes, line[width], row, number, LIMIT)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_xscale("symlog", linthresh=EVEN)
    axes.set_xlim(LIMIT * 1.15, 2)
    axes.set_xlabel(f"even within ±{EVEN}, logarithmic beyond", fontsize="small")
    axes.set_xticks([-10, -3, -1, -0.3, 0, 0.3, 1], ["-10", "-3", "-1", "-0.3", "0", "0.3", "1"])
    axes.set_title(f"{runs.backbone}: minus QDrop [points]", fontsize="medium")
    axes.grid(axis="x", alpha=0.3)


def over(needs: pd.Series, reference: pd.Series) -> float:
    """The CPU-seconds of a method over those of the reference; NaN where one of them has seconds of the clock."""
    return math.nan if needs.clock or reference.clock else needs.cpu_seconds_all / reference.cpu_seconds_all


def draw_costs(bits, seconds, costs: pd.DataFrame, backbones: Sequence[str], rows: Sequence[tuple[str, str]]) -> None:
    """The two panels of costs: a marker a network."""
    for backbone, marker in zip(backbones, forest.MARKERS, strict=False):
        reference = costs.loc[(backbone, REFERENCE, "default")]
        style = {"color": "#555555", "marker": marker, "markersize": 5, "linestyle": "none"}
        known = [(y, costs.loc[(backbone, *row)]) for y, row in enumerate(rows) if (backbone, *row) in costs.index]
        bits.plot([row.bits_all for _, row in known], [y for y, _ in known], **style)
        seconds.plot([over(row, reference) for _, row in known], [y for y, _ in known], label=backbone, **style)
        bits.axvline(reference.bits_all, color="black", linewidth=1)
    bits.set_xlim(0)
    seconds.set_xscale("log")
    seconds.axvline(1, color="black", linewidth=1)
    seconds.xaxis.set_major_formatter(plt.FuncFormatter(lambda x, _: f"{x:g}"))
    bits.set_title("stored bits a weight", fontsize="medium")
    seconds.set_title("CPU-seconds, over QDrop's", fontsize="medium")
    for axes in (bits, seconds):
        axes.grid(axis="x", alpha=0.3)


def table_of(
    backbone: str, costs: pd.DataFrame, rows: Sequence[tuple[str, str]], found: Sequence[dict[str, Estimate]]
) -> list[dict[str, str]]:
    """What the figure shows of one network, a row a method that was run."""
    reference, lines = costs.loc[(backbone, REFERENCE, "default")], []
    for (method, variant), line in zip(rows, found, strict=True):
        if line:
            needs, one = costs.loc[(backbone, method, variant)], next(iter(line.values()))
            ratio = over(needs, reference)
            lines.append({
                "backbone": backbone, "method": method, "variant": variant,
                **{width: str(difference) for width, difference in line.items()},
                "seeds": str(one.n), "paired by": by(one),
                "bits a weight": "" if pd.isna(needs.bits_all) else f"{needs.bits_all:.1f}",
                "CPU-s over QDrop's": "" if math.isnan(ratio) else f"{ratio:.2f}",
            })  # fmt: skip
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    runs, out = runs_and_folder(__doc__, argv)
    done = runs[(runs.status == "done") & (runs.method != "fp32")]
    inside = done[done.in_groups.astype(bool)]
    backbones = [name for name, part in inside.groupby("backbone") if REFERENCE in set(part.method)]
    rows, costs = rows_of(inside[inside.backbone.isin(backbones)]), cost(runs).set_index(KEYS)
    each = [Runs(inside, backbone, out) for backbone in backbones]
    found = [differences(backbone_runs, rows) for backbone_runs in each]
    size = (3.2 * (len(backbones) + 1) + 2.5, 0.42 * len(rows) + 1.4)
    widths = {"width_ratios": [*[1.3] * len(backbones), 1, 1]}
    figure, panels = plt.subplots(
        1, len(backbones) + 2, figsize=size, sharey=True, squeeze=False, layout="constrained", gridspec_kw=widths
    )
    *compared, bits, seconds = panels[0]
    for axes, backbone_runs, differing in zip(compared, each, found, strict=True):
        draw_differences(axes, backbone_runs, differing)
    if compared:
        forest.names(compared[0], [backbone_runs.groups for backbone_runs in each])
    draw_costs(bits, seconds, costs, backbones, rows)
    bits.set_yticks(range(len(rows)), [label_of(*row) for row in rows])
    bits.invert_yaxis()
    for axes in [*panels[0, :1].tolist(), seconds]:
        handles, labels = axes.get_legend_handles_labels()
        place = "outside lower right" if axes is seconds else "outside lower left"
        figure.legend(handles, labels, ncols=len(backbones) + 1, fontsize="small", loc=place, frameon=False)
    note = note_of(runs.dataset)
    save(figure, out / "figures/headline", note)
    (out / "tables").mkdir(parents=True, exist_ok=True)
    lines = [line for backbone, differing in zip(backbones, found, strict=True)
             for line in table_of(backbone, costs, rows, differing)]  # fmt: skip
    write(pd.DataFrame(lines, columns=list(dict.fromkeys(key for line in lines for key in line))).fillna(""),
          out / "tables/headline", by="backbone" if lines else None, note=note)  # fmt: skip


if __name__ == "__main__":
    main()
