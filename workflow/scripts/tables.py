"""The tidy CSV -> the tables: top-1 by method and width, and what each calibration cost.

    tables.py --runs results/digits/runs.csv --out results/digits/tables

Each is written as CSV, Markdown, LaTeX and HTML.
"""

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

KEYS = ["backbone", "method", "variant"]
GIVEN = {  # columns of `cost`, as its table names them
    "images": "images",
    "labels": "labels",
    "epochs": "epochs",
    "iterations_all": "iterations in all",
    "calibrations": "calibrations",
    "peak_mb": "peak MiB",
    "seconds": "s a calibration",
    "seconds_all": "s for all widths",
    "cpu_seconds_all": "CPU-s for all widths",
    "bits_all": "bits a weight",
    "switch_images": "images a switch",
    "switch_ms": "ms a switch",
    "load": "load",
    "code": "code",
}
MULTI = "multi"  # label of a run for all widths at once
KINDS = (
    "nothing learned",
    "one calibration for all widths",
    "one calibration a width",
    "trained with labels",
)  # of methods
NOTHING_LEARNED, FOR_ALL_WIDTHS, FOR_EACH_WIDTH, TRAINED = KINDS
NEEDED = ["labels", "images a switch"]
LONG = 40  # characters of a LaTeX cell that is wrapped
WIDE = 90  # characters of a LaTeX row that is scaled to the width of the text
SYMBOLS = {"±": r"$\pm$", "γ": r"$\gamma$", "λ": r"$\lambda$", "×": r"$\times$", "≥": r"$\geq$", "²": "$^2$"}
SYMBOLS |= {"⁹": "$^9$", "µ": r"$\mu$"}
NEEDS = "% Needs \\usepackage{booktabs, graphicx}.\n"
STYLE = """<!doctype html><meta charset="utf-8"><style>
body { font: 14px sans-serif } table { border-collapse: collapse; margin: 1em }
th, td { padding: 3px 9px; text-align: left; border-bottom: 1px solid #ddd }
</style>"""
NOTES = {"imagenet_subset": "not reproducible by others: its images are not published"}  # by dataset; docs/data.md
FIRST, LAST = ["fp32", "nearest_minmax", "nearest_mse"], ["ptmq"]  # ceiling, floor, ..., the method of the suite


def method_order(method: str) -> tuple:
    """Ceiling first, then the floor, the baselines by name, and PTMQ at the end."""
    if method in FIRST:
        return (0, FIRST.index(method), method)
    return (2 if method in LAST else 1, 0, method)


def kind_of(lines: pd.DataFrame) -> str:
    """Which of KINDS a method is, by its rows."""
    if (lines.labels > 0).any():
        return TRAINED
    if not (lines.iterations > 0).any():
        return NOTHING_LEARNED
    return FOR_ALL_WIDTHS if (lines.label == MULTI).all() else FOR_EACH_WIDTH


def widths_of(runs: pd.DataFrame) -> list[str]:
    """All widths of rows that have them (`with_width`), lowest first."""
    return list(runs.sort_values(["w_bits", "a_bits"]).width.drop_duplicates())


def cell(group: pd.DataFrame) -> str:
    """One cell: the mean over seeds, ± the standard deviation where there are several; and what is missing."""
    done, failed = (group[group.status == status] for status in ("done", "failed"))
    if len(done) == len(group):
        return mean_sd(done.top1)
    why = f"failed ({failed.log.iloc[0]})" if len(failed) else "not run"
    return f"{mean_sd(done.top1)}, {len(done)} of {len(group)} seeds, else {why}" if len(done) else why


def mean_sd(values: pd.Series, digits: int = 2) -> str:
    """The mean, ± the standard deviation where there are several values.

    >>> mean_sd(pd.Series([91.2, 91.4]))
    '91.30 ± 0.14'
    """
    return f"{values.mean():.{digits}f}" + (f" ± {values.std():.{digits}f}" if len(values) > 1 else "")


def with_width(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows with their width in the suite's notation, such as W4A4."""
    return runs.assign(width="W" + runs.w_bits.astype(str) + "A" + runs.a_bits.astype(str))


VNNI = {True: "yes", False: "no", None: "unknown"}  # of a processor, as the records say it


def processor_seconds(runs: pd.DataFrame, of: str = "") -> pd.Series:
    """CPU-seconds of a calibration, or with `_all` of all widths; of older records, which lack them, of the clock."""
    return runs[f"cpu_seconds{of}"].fillna(runs[f"seconds{of}"])


def divergence(runs: pd.DataFrame) -> pd.DataFrame:
    """As `accuracy`, cells: mean KL(FP || quantized) in nats, finer than top-1 for comparing settings.

    Methods that train with labels are left out: they are free to differ from the FP network.
    """
    done = with_width(runs[(runs.status == "done") & (runs.method != "fp32") & ~(runs.labels > 0)])
    widths = widths_of(done)
    table = done.pivot_table(index=KEYS, columns="width", values="kl", observed=True)
    cells = table.reindex(columns=widths).map(lambda kl: "" if pd.isna(kl) else f"{kl:#.4g}")
    return ordered(cells.reset_index())


def accuracy(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows: backbone, method, variant · columns: the widths, lowest first, FP last · cells: top-1 in percent."""
    groups = with_width(runs).groupby([*KEYS, "w_bits", "a_bits", "width"])
    table = pd.DataFrame([[*key, cell(group)] for key, group in groups], columns=[*groups.keys, "top1"])
    return ordered(table.pivot(index=KEYS, columns="width", values="top1")[widths_of(table)].reset_index()).fillna("")


def given(runs: pd.DataFrame) -> pd.DataFrame:
    """`cost` as it is read: what each method was given to serve all widths, and what it took."""
    table = cost(runs)
    text = table[list(GIVEN)].rename(columns=GIVEN).astype(object)
    text = text.map(lambda value: value if isinstance(value, str) else "" if pd.isna(value) else f"{value:.0f}")
    shown = zip(text["CPU-s for all widths"], table.clock, strict=True)
    text["CPU-s for all widths"] = [seconds + " (clock)" * clock for seconds, clock in shown]
    text["bits a weight"] = ["" if pd.isna(bits) else f"{bits:.1f}" for bits in table.bits_all]
    text[NEEDED] = text[NEEDED].replace("0", "")  # a column for those who need any
    return pd.concat([table[KEYS], text], axis=1)


def load_of(rows: pd.DataFrame) -> str:
    """The load average of the machine while it calibrated, from the lowest to the highest; empty where not recorded."""
    loads = pd.concat([rows.load_start, rows.load_end]).dropna()
    return "" if loads.empty else f"{loads.min():.1f} to {loads.max():.1f}"


def cost(runs: pd.DataFrame) -> pd.DataFrame:
    """What it takes to serve all widths of the backbone's bit groups, means over seeds.

    images, labels: how many training images are used, and how many labels · epochs: of training · iterations: a
    unit · iterations_all: a calibration · widths: how many they are · calibrations: how many they need · seconds: of
    one calibration, with their standard deviation · seconds_all: those of one calibration times that (a single-width
    method is charged the mean over the widths of the groups that were run) · cpu_seconds_all: the same of the
    processor, of older records those of the clock · clock: whether they are that · bits_all: of a weight, as all
    widths are stored · switch_images, switch_ms: what a switch of the bit-width re-estimates BatchNorm with · load:
    what else the machine did · code: why the rows may be of more than one code state.
    """
    done = runs[(runs.status == "done") & (runs.method != "fp32")].astype({"in_groups": bool})
    served = done[done.in_groups].drop_duplicates(["backbone", "w_bits", "a_bits"]).groupby("backbone").size()
    serves = done.groupby([*KEYS, "seed", "label"]).in_groups.transform("sum")
    # one row a calibration, whatever it serves
    each = done.assign(serves=serves, cpu=processor_seconds(done))
    each = each[serves > 0].drop_duplicates([*KEYS, "seed", "label"])
    table = each.groupby(KEYS).agg(
        iterations=("iterations", "max"), iterations_all=("iterations_all", "max"), images=("images_used", "max"),
        labels=("labels", "max"), epochs=("epochs", "max"),
        device=("device", "first"), peak_mb=("peak_mb", "max"), seconds_each=("seconds", "mean"),
        cpu_each=("cpu", "mean"),
        clock=("cpu_seconds", lambda seconds: seconds.isna().any()), bits=("bits_per_weight", "mean"),
        serves=("serves", "max"), label=("label", "first"), code=("mixed_code", "first"),
    ).reset_index()  # fmt: skip
    by_key = each.groupby(KEYS)
    spread = by_key.seconds.agg(lambda seconds: mean_sd(seconds, 0)).rename("seconds")
    table = table.join(spread, on=KEYS)
    table["load"] = [load_of(by_key.get_group(tuple(key))) for key in table[KEYS].itertuples(index=False)]
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
    table["cpu_seconds_all"] = (table.cpu_each * table.calibrations).round(1)
    table["bits_all"] = table.bits.where(table.label == MULTI, table.backbone.map(bits_of_single_models(done)))
    table["seconds_each"] = table.seconds_each.round(1)
    table["switch_ms"] = table.switch_ms.round(1)
    return ordered(table.drop(columns=["serves", "label", "cpu_each", "bits"]))


def bits_of_single_models(done: pd.DataFrame) -> pd.Series:
    """Bits that a weight takes of each backbone's models for one width alone, one for every width of the groups.

    The first and the last layer keep 8 bits at any width. Their share of the weights comes from the models that were
    run: they have the mean over all weights. NaN where no record says it.
    """
    inside = done[done.in_groups]
    alone = inside[inside.label != MULTI].drop_duplicates([*KEYS, "seed", "label"])
    runs = alone.assign(above=8 - alone.w_bits).groupby([*KEYS, "seed"])  # their bits_per_weight is of all together
    bits = runs.agg(bits=("bits_per_weight", "first"), w_bits=("w_bits", "sum"), above=("above", "sum"))
    share = ((bits.bits - bits.w_bits) / bits.above).where(bits.above > 0).groupby("backbone").mean()
    widths = inside.drop_duplicates(["backbone", "w_bits"]).groupby("backbone").w_bits
    return widths.sum() + share * (8 * widths.size() - widths.sum())


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """By backbone, then the methods in the suite's order, `default` first among variants."""
    keys = table.assign(order=table.method.map(method_order), other=(table.variant != "default").map(int)).sort_values(
        ["backbone", "order", "other", "variant"]
    )
    return table.loc[keys.index].reset_index(drop=True)


def note_of(datasets: Iterable[object]) -> str:
    """What a reader has to know of results on these datasets before anything else, if there is something."""
    return "; ".join(dict.fromkeys(NOTES[name] for name in datasets if name in NOTES))


def write(table: pd.DataFrame, path: Path, by: str | None = "backbone", note: str = "") -> None:
    """One table as CSV; as Markdown, LaTeX and HTML in parts, one for each value of `by`, without empty columns.

    note: stands in the captions of LaTeX, and above the tables of the others.
    """
    table.to_csv(path.with_suffix(".csv"), index=False)
    text = table.reset_index(drop=True).map(str)
    parts = (
        {path.stem: text}
        if by is None
        else {f"{path.stem}, {value}": part for value, part in text.groupby(by, sort=False)}
    )
    parts = {name: part.loc[:, (part != "").any() | part.empty] for name, part in parts.items()}
    above = [f"*{note.capitalize()}.*\n"] if note else []
    path.with_suffix(".md").write_text("\n".join([*above, *map(_markdown, parts.values())]))
    path.with_suffix(".tex").write_text(NEEDS + "\n".join(_latex(part, name, note) for name, part in parts.items()))
    with pd.option_context("display.max_colwidth", None):
        pages = [part.to_html(index=False, border=0) for part in parts.values()]
    above = [f"<p>{note.capitalize()}.</p>"] if note else []
    path.with_suffix(".html").write_text("\n".join([STYLE, *above, *pages]) + "\n")


def _markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, its cells as long as their text."""
    lines = table.to_markdown(index=False, disable_numparse=True, stralign=None).splitlines()
    lines[1] = "|" + "---|" * len(table.columns)
    return "\n".join(lines) + "\n"


def _latex(table: pd.DataFrame, name: str, note: str) -> str:
    """A table in LaTeX, which a paper can \\input: with booktabs, a caption and a label, no wider than the text."""
    styler = table.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    columns = "".join(_latex_column(table[column]) for column in table)
    label = "tab:" + re.sub("[^a-z0-9]+", "-", name.lower())
    text = styler.to_latex(
        column_format=columns,
        hrules=True,
        position="htbp",
        position_float="centering",
        caption=name.replace("_", r"\_") + (f" ({note})" if note else ""),
        label=label,
    )
    longest = np.minimum(table.map(len).max(), LONG).sum() if len(table) else 0
    if longest > WIDE:
        text = text.replace(r"\begin{tabular}", r"\resizebox{\linewidth}{!}{%" + "\n" + r"\begin{tabular}")
        text = text.replace(r"\end{tabular}", r"\end{tabular}}")
    for character, command in SYMBOLS.items():
        text = text.replace(character, command)
    return text


def _latex_column(cells: pd.Series) -> str:
    """How a column is set: long text wrapped, text to the left, numbers to the right."""
    if cells.map(len).max() > LONG:
        return "p{5cm}"
    return "l" if cells.str[:1].str.isalpha().any() else "r"


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
    return runs.assign(variant=names).drop(index=once)


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
    note = note_of(runs.dataset)
    for name, table in {"accuracy": accuracy(runs), "divergence": divergence(runs), "cost": given(runs)}.items():
        write(table, out / name, note=note)


if __name__ == "__main__":
    main()
