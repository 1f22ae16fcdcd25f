"""The run records of one ablation -> its table and figure.

    ablation.py --root results/cifar10_ablations --name gd --method ptmq --records RECORD ...

Rows are variants; cells are mean top-1, and the change from the default at the three lowest widths, paired by seed and,
where the evaluations kept it, by image.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import forest
import matplotlib.pyplot as plt
import pandas as pd
from collect import KEYS, NAME, rows_of_record
from intervals import Estimate
from paired import Missing, Runs
from style import save
from tables import mean_sd, note_of, widths_of, with_width, write


def change(paired: Runs, method: str, variant: str, width: str) -> Estimate:
    """Top-1 of a variant minus that of the default, paired by seed and image; NaN where one of them was not run."""
    try:
        return paired.difference((method, width, variant), (method, width))
    except Missing:
        return Estimate(math.nan, math.nan, 0, ())


def row_of(runs: pd.DataFrame, paired: Runs, method: str, variant: str) -> dict:
    """One variant: top-1 at every width, its change at the lowest three, what it was given."""
    part = runs[(runs.method == method) & (runs.variant == variant)]
    row = {"backbone": part.backbone.iloc[0], "method": method, "variant": variant, "seeds": part.seed.nunique()}
    row |= {width: mean_sd(part[part.width == width].top1) for width in widths_of(runs) if (part.width == width).any()}
    if variant != "default":
        found = {width: change(paired, method, variant, width) for width in widths_of(runs)[: forest.WIDTHS]}
        row |= {f"change {width}": str(points) for width, points in found.items() if points.n}
    if pd.notna(part.rounding_values.iloc[0]):  # hard rounding values take one bit each
        row["R [KiB]"] = f"{part.rounding_values.iloc[0] / 8 / 1024:.2f}"
    return row | {"images": f"{part.calibration_images.iloc[0]}", "s": f"{part.seconds.mean():.0f}"}


def table_of(runs: pd.DataFrame, method: str, missing: list[str]) -> pd.DataFrame:
    """One row a variant as the profile lists them, rounding to nearest last; then the variants without any run."""
    keys = runs[["method", "variant"]].drop_duplicates().sort_values("method", key=lambda m: m != method, kind="stable")
    paired = Runs(runs, runs.backbone.iloc[0])
    rows = [row_of(runs, paired, *key) for key in keys.itertuples(index=False)]
    absent = [variant for variant in missing if variant not in set(runs.variant)]
    rows += [{"backbone": runs.backbone.iloc[0], "method": method, "variant": v, "seeds": "not run"} for v in absent]
    return pd.DataFrame(rows).fillna("")


def drawn(runs: pd.DataFrame, method: str) -> list[str]:
    """The variants that have a row in the figure."""
    return [variant for variant in runs[runs.method == method].variant.drop_duplicates() if variant != "default"]


def draw(axes, runs: pd.DataFrame, method: str) -> None:
    """Change from the default at the lowest widths, a row a variant, with 95 % intervals."""
    paired, variants = Runs(runs, runs.backbone.iloc[0]), drawn(runs, method)
    for number, width in enumerate(widths_of(runs)[: forest.WIDTHS]):
        for row, variant in enumerate(variants):
            found = change(paired, method, variant, width)
            if found.n:
                forest.point(axes, found, row, number)
    axes.axvline(0, color="black", linewidth=1)
    seeds = runs[runs.method == method].groupby("variant").seed.nunique()
    axes.set_yticks(range(len(variants)), [f"{v} (n = {seeds[v]})" for v in variants])
    axes.set_ylim(max(1, len(variants)) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--method", default="ptmq", help="whose variants they are")
    parser.add_argument("--records", type=Path, nargs="+", required=True)
    parser.add_argument("--missing", nargs="*", default=[], help="names of runs that were asked for and not run")
    args = parser.parse_args(argv)
    runs = with_width(pd.DataFrame([row for path in args.records for row in rows_of_record(path)]))
    (args.root / "tables").mkdir(parents=True, exist_ok=True)
    each = dict(list(runs.groupby("backbone", sort=False)))
    missing = pd.DataFrame([NAME.fullmatch(name).groupdict() for name in args.missing], columns=KEYS).drop_duplicates(
        ["backbone", "variant"]
    )
    tables = pd.concat([
        table_of(mine, args.method, list(missing[missing.backbone == backbone].variant))
        for backbone, mine in each.items()
    ]).fillna("")  # fmt: skip
    note = note_of(runs.dataset)
    write(tables, args.root / "tables" / f"ablation_{args.name}", note=note)
    lines = [1 + len(drawn(mine, args.method)) for mine in each.values()]
    figure, panels = plt.subplots(
        len(each), figsize=(8, 0.4 * sum(lines) + 0.6 * len(each)), sharex=True, squeeze=False, layout="constrained",
        gridspec_kw={"height_ratios": lines},
    )  # fmt: skip
    for axes, (backbone, mine) in zip(panels.flat, each.items(), strict=True):
        draw(axes, mine, args.method)
        axes.set_title(f"{backbone}, {int(mine.images.iloc[0]):,} {mine.split.iloc[0]} images", fontsize="medium")
    forest.names(panels.flat[0], map(widths_of, each.values()))
    panels.flat[-1].set_xlabel("top-1 minus the default's [points]")
    figure.legend(*panels.flat[0].get_legend_handles_labels(), fontsize="small", loc="outside right upper")
    save(figure, args.root / "figures" / f"ablation_{args.name}", note)


if __name__ == "__main__":
    main()
