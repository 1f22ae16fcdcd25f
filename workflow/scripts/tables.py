"""The tidy CSV -> the tables: top-1 by method and width, and what each calibration cost.

    tables.py --runs results/digits/runs.csv --out results/digits/tables

Each is written as CSV, Markdown, LaTeX and HTML.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

KEYS = ["backbone", "method", "variant"]
GIVEN = {
    "images": "images",
    "labels": "labels",
    "epochs": "epochs",
    "iterations_all": "iterations in all",
    "peak_mb": "peak MiB",
    "seconds_each": "s a calibration",
    "seconds_all": "s for all widths",
    "switch_images": "images a switch",
    "switch_ms": "ms a switch",
}
MULTI = "multi"  # label of a run for all widths at once
NEEDED = ["labels", "images a switch"]
LONG = 40  # characters of a LaTeX cell that is wrapped
STYLE = """<!doctype html><meta charset="utf-8"><style>
body { font: 14px sans-serif } table { border-collapse: collapse; margin: 1em }
th, td { padding: 3px 9px; text-align: left; border-bottom: 1px solid #ddd }
</style>"""
FIRST, LAST = ["fp32", "nearest_minmax", "nearest_mse"], ["ptmq"]  # ceiling, floor, ..., the method of the suite


def method_order(method: str) -> tuple:
    """Ceiling first, then the floor, the baselines by name, and PTMQ at the end."""
    if method in FIRST:
        return (0, FIRST.index(method), method)
    return (2 if method in LAST else 1, 0, method)


def cell(group: pd.DataFrame) -> str:
    """One cell: the mean over seeds, ± the standard deviation where there are several; and what is missing."""
    done, failed = (group[group.status == status] for status in ("done", "failed"))
    if len(done) == len(group):
        return mean_sd(done.top1)
    why = f"failed ({failed.log.iloc[0]})" if len(failed) else "not run"
    return f"{mean_sd(done.top1)}, {len(done)} of {len(group)} seeds, else {why}" if len(done) else why


def mean_sd(values: pd.Series) -> str:
    """The mean, ± the standard deviation where there are several values."""
    return f"{values.mean():.2f}" + (f" ± {values.std():.2f}" if len(values) > 1 else "")


def with_width(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows with their width in the suite's notation, such as W4A4."""
    return runs.assign(width="W" + runs.w_bits.astype(str) + "A" + runs.a_bits.astype(str))


def divergence(runs: pd.DataFrame) -> pd.DataFrame:
    """As `accuracy`, cells: mean KL(FP || quantized) in nats, finer than top-1 for comparing settings.

    Methods that train with labels are left out: they are free to differ from the FP network.
    """
    done = with_width(runs[(runs.status == "done") & (runs.method != "fp32") & ~(runs.labels > 0)])
    widths = done.sort_values(["w_bits", "a_bits"]).width.drop_duplicates()
    table = done.pivot_table(index=KEYS, columns="width", values="kl", observed=True)
    cells = table.reindex(columns=widths).map(lambda kl: "" if pd.isna(kl) else f"{kl:.4f}")
    return ordered(cells.reset_index())


def accuracy(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows: backbone, method, variant · columns: the widths, lowest first, FP last · cells: top-1 in percent.

    Behind them what each method was given: iterations and seconds of a calibration, peak memory, seconds for all
    widths.
    """
    groups = with_width(runs).groupby([*KEYS, "w_bits", "a_bits", "width"])
    table = pd.DataFrame([[*key, cell(group)] for key, group in groups], columns=[*groups.keys, "top1"])
    widths = table.sort_values(["w_bits", "a_bits"]).width.drop_duplicates()
    table = table.pivot(index=KEYS, columns="width", values="top1")[list(widths)].reset_index()
    given = cost(runs).set_index(KEYS)[list(GIVEN)].rename(columns=GIVEN)
    given = given.astype(object).map(lambda value: "" if pd.isna(value) else f"{value:.0f}")
    given[NEEDED] = given[NEEDED].replace("0", "")  # a column for those who need any
    return ordered(table.join(given, on=KEYS)).fillna("")


def cost(runs: pd.DataFrame) -> pd.DataFrame:
    """What it takes to serve all widths of the backbone's bit groups, means over seeds.

    images, labels: how many training images are used, and how many labels · epochs: of training · iterations: a
    unit · iterations_all: a calibration · widths: how many they are · calibrations: how many they need ·
    seconds_all: those of one calibration times that (a single-width method is charged the mean over the widths of the
    groups that were run) · switch_images, switch_ms: what a switch of the bit-width re-estimates BatchNorm with.
    """
    done = runs[(runs.status == "done") & (runs.method != "fp32")].astype({"in_groups": bool})
    served = done[done.in_groups].drop_duplicates(["backbone", "w_bits", "a_bits"]).groupby("backbone").size()
    serves = done.groupby([*KEYS, "seed", "label"]).in_groups.transform("sum")
    # one row a calibration, whatever it serves
    each = done.assign(serves=serves)[serves > 0].drop_duplicates([*KEYS, "seed", "label"])
    table = each.groupby(KEYS).agg(
        iterations=("iterations", "max"), iterations_all=("iterations_all", "max"), images=("images_used", "max"),
        labels=("labels", "max"), epochs=("epochs", "max"),
        device=("device", "first"), peak_mb=("peak_mb", "max"), seconds_each=("seconds", "mean"),
        serves=("serves", "max"), label=("label", "first"),
    ).reset_index()  # fmt: skip
    switches = (
        done[done.in_groups].groupby(KEYS).agg(switch_images=("switch_images", "max"), switch_ms=("switch_ms", "mean"))
    )
    table = table.join(switches, on=KEYS)
    # beside runs that are missing pandas reads these as floating-point numbers; older records lack iterations_all
    whole = ["iterations", "iterations_all", "images", "labels", "epochs", "switch_images", "peak_mb"]
    table[whole] = table[whole].astype("Int64")
    table["widths"] = table.backbone.map(served).astype(int)
    table["calibrations"] = np.ceil(table.widths / table.serves.astype(int)).astype(int)
    # one run for all widths would serve those that it was not asked for, too
    table.loc[table.label == MULTI, "calibrations"] = 1
    table["seconds_all"] = (table.seconds_each * table.calibrations).round(1)
    table["seconds_each"] = table.seconds_each.round(1)
    table["switch_ms"] = table.switch_ms.round(1)
    return ordered(table.drop(columns=["serves", "label"]))


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """By backbone, then the methods in the suite's order, `default` first among variants."""
    keys = table.assign(order=table.method.map(method_order), other=(table.variant != "default").map(int)).sort_values(
        ["backbone", "order", "other", "variant"]
    )
    return table.loc[keys.index].reset_index(drop=True)


def write(table: pd.DataFrame, path: Path, by: str | None = "backbone") -> None:
    """One table as CSV; as Markdown, LaTeX and HTML in parts, one for each value of `by`, without empty columns."""
    table.to_csv(path.with_suffix(".csv"), index=False)
    parts = [table] if by is None else [part for _, part in table.groupby(by, sort=False)]
    parts = [part.loc[:, (part != "").any()] for part in parts]
    path.with_suffix(".md").write_text("\n".join(map(_markdown, parts)))
    path.with_suffix(".tex").write_text("\n".join(map(_latex, parts)))
    with pd.option_context("display.max_colwidth", None):
        pages = [part.to_html(index=False, border=0) for part in parts]
    path.with_suffix(".html").write_text("\n".join([STYLE, *pages]) + "\n")


def _markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    header, *body = ["| " + " | ".join(map(str, row)) + " |" for row in [table.columns, *table.itertuples(index=False)]]
    return "\n".join([header, "|" + "---|" * len(table.columns), *body]) + "\n"


def _latex(table: pd.DataFrame) -> str:
    """A tabular in LaTeX, with booktabs."""
    header, *body = [" & ".join(map(_tex, row)) + r" \\" for row in [table.columns, *table.itertuples(index=False)]]
    columns = "".join(map(_latex_column, zip(*table.itertuples(index=False), strict=True)))
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    return "\n".join([begin, r"\toprule", header, r"\midrule", *body, r"\bottomrule", end]) + "\n"


def _latex_column(cells: Sequence) -> str:
    """How a column is set: long text wrapped, text to the left, numbers to the right."""
    texts = list(map(str, cells))
    if max(map(len, texts), default=0) > LONG:
        return "p{5cm}"
    return "l" if any(text[:1].isalpha() for text in texts) else "r"


def _tex(value) -> str:
    """A cell in LaTeX."""
    text = str(value)
    for character, command in {"&": r"\&", "%": r"\%", "_": r"\_", "±": r"$\pm$", "γ": r"$\gamma$"}.items():
        text = text.replace(character, command)
    return text


def own_first(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs without published ones that were run here, too."""
    keys = [*KEYS, "label", "seed", "w_bits", "a_bits"]
    return runs.sort_values("origin", kind="stable").drop_duplicates(keys).sort_index()


def marked(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with `published` in the variant of those that are, where one's own stand beside them."""
    published = runs.origin == "published"
    if published.all() or not published.any():
        return runs
    ceiling = runs[runs.method == "fp32"]
    once = ceiling[ceiling.origin == "published"].index[
        ceiling[ceiling.origin == "published"].backbone.isin(ceiling[ceiling.origin == "own"].backbone)
    ]
    names = runs.variant.where(~published, (runs.variant + ", published").replace("default, published", "published"))
    return runs.assign(variant=names.where(runs.method != "fp32", runs.variant)).drop(index=once)


def runs_and_folder(description: str, argv: Sequence[str] | None) -> tuple[pd.DataFrame, Path]:
    """What the command line of a script names that turns the tidy CSV into files: --runs and --out."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    return marked(pd.read_csv(args.runs)), args.out


def records_and_folder(description: str, argv: Sequence[str] | None) -> tuple[list[dict], Path]:
    """What the command line of a script names that turns records into files: --records and --out."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--records", type=Path, nargs="+", required=True)
    args = parser.parse_args(argv)
    return [json.loads(path.read_text()) for path in args.records], args.out


def main(argv: Sequence[str] | None = None) -> None:
    runs, out = runs_and_folder(__doc__, argv)
    out.mkdir(parents=True, exist_ok=True)
    write(accuracy(runs), out / "accuracy")
    write(divergence(runs), out / "divergence")
    costs = cost(runs).astype(object)
    write(costs.where(costs.notna(), ""), out / "cost")


if __name__ == "__main__":
    main()
