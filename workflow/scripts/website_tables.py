"""The tables of the site: what their cells say, by what they are sorted, and where a click leads to."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from collect import MULTI
from docutils.core import publish_parts
from tables import KEYS, mean_sd, ordered, processor_seconds, widths_of

from ptmq.common.provenance import declared

WORKFLOW = Path(__file__).resolve().parent.parent
LINKED = "accuracy"  # the table that is made anew here, with a link to a run in every number
CAPTIONS = {"cost": "tables", "divergence": "tables", "switching": "frontier"}  # of tables that share one
DIGITS = {"top1": 2, "kl": 4, "cpu_seconds": 0, "seconds": 0, "bits_per_weight": 2}
EVERY_RUN = ["backbone", "method", "variant", "label", "seed", "width", *DIGITS]
NUMBER = re.compile(r"[-+±*]*(\d[\d,]*\.?\d*(?:e[-+]?\d+)?)")


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, what it is sorted by, and where a click leads to."""

    text: str
    order: str = ""
    link: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a page. name: also that of its CSV file, if it has one."""

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    download: str = ""


# ---------------------------------------------------------------- cells
def cell(text: str, link: str = "") -> Cell:
    """A cell that is sorted by its number, where it begins with one."""
    number = NUMBER.match(text)
    sign = "-" if text.startswith("-") else ""
    return Cell(text, sign + number[1].replace(",", "") if number else text.lower(), link)


def number(value: Any, digits: int, link: str = "") -> Cell:
    """A number with so many digits, empty where it is unknown."""
    return Cell("") if pd.isna(value) else Cell(f"{value:.{digits}f}", str(value), link)


def over_seeds(group: pd.DataFrame) -> Cell:
    """The mean over the seeds; the first one's page has links to the others."""
    return Cell(mean_sd(group.top1), str(group.top1.mean()), group.sort_values("seed").page.iloc[0])


def accuracy(runs: pd.DataFrame) -> Table:
    """Top-1 by method and width, a link to the run in every number."""
    widths = widths_of(runs)
    cells = {key: over_seeds(group) for key, group in runs.groupby([*KEYS, "width"])}
    keys = ordered(runs[KEYS].drop_duplicates()).itertuples(index=False, name=None)
    rows = [[*map(cell, key), *(cells.get((*key, width), Cell("")) for width in widths)] for key in keys]
    return Table(LINKED, [*KEYS, *widths], rows, caption(LINKED))


def written(path: Path, address: str) -> Table:
    """A table that the workflow wrote as CSV."""
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows = [list(map(cell, row)) for row in frame.to_numpy()]
    return Table(path.stem, list(frame), rows, caption(path.stem), address)


def every_run(runs: pd.DataFrame) -> Table:
    """One row a run and width."""

    def shown(row: Mapping[str, Any], name: str) -> Cell:
        link = row["page"] if name == "top1" else ""
        return number(row[name], DIGITS[name], link) if name in DIGITS else cell(str(row[name]))

    rows = [[shown(row, name) for name in EVERY_RUN] for row in runs.to_dict("records")]
    return Table("runs", [name.replace("_", " ") for name in EVERY_RUN], rows, caption("runs"))


def leaderboard(found: Sequence[pd.DataFrame]) -> list[Table]:
    """Methods with one model for all widths, on test images; a table for each network."""
    if not found:
        return []
    runs = pd.concat(found)
    runs = runs[(runs.label == MULTI) & (runs.split == "test") & (runs.variant == "default")]
    return [ranked(", ".join(key), group) for key, group in runs.groupby(["dataset", "backbone"])]


def ranked(name: str, runs: pd.DataFrame) -> Table:
    """One network's methods, those with the best mean over the widths that most of them have first."""
    served = runs[runs.in_groups.astype(bool)]
    keys = ["profile", "method"]
    counts = served.drop_duplicates([*keys, "width"]).width.value_counts()
    shared = counts.index[counts == counts.max()]
    widths, rows = widths_of(served), []
    for (profile, method), group in served.groupby(keys):
        cells = {width: over_seeds(each) for width, each in group.groupby("width")}
        mean = group[group.width.isin(shared)].groupby("width").top1.mean().mean()
        known = [
            number(group.bits_per_weight.mean(), 2),
            number(processor_seconds(group).mean(), 0),
            number(group.labels.max() or None, 0),
            number(group.seed.nunique(), 0),
        ]
        label = (declared(str(method), "style", ()) or [method])[0]
        where = Cell(profile, profile, f"{profile}/index.html")
        rows.append([cell(label), number(mean, 2), *(cells.get(w, Cell("")) for w in widths), *known, where])
    rows.sort(key=lambda row: -float(row[1].order or 0))
    header = ["method", "mean", *widths, "bits a weight", "CPU-s", "labels", "seeds", "profile"]
    filled = [at for at in range(len(header)) if any(row[at].text for row in rows)]
    return Table(name, [header[at] for at in filled], [[row[at] for at in filled] for row in rows])


def caption(name: str) -> str:
    """What the report of the workflow says of a table, as HTML."""
    path = WORKFLOW / "captions" / f"{CAPTIONS.get(name, name)}.rst"
    return publish_parts(path.read_text(), writer="html5")["body"] if path.exists() else ""


# ---------------------------------------------------------------- of one record
def listed(name: str, lines: Sequence[Mapping[str, Any]]) -> list[Table]:
    """A list of a record as a table, none where it is empty."""
    header = list(
        dict.fromkeys(key for line in lines for key, value in line.items() if not isinstance(value, list | dict))
    )
    rows = [[cell(str(line.get(key, ""))) for key in header] for line in lines]
    return [Table(name, header, rows)] if rows else []


def errors(units: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The error of every block before and after learning, by width."""
    told = [unit for unit in units if unit.get("error_after")]
    if not told:
        return []
    widths = list(told[0]["error_after"])
    rows = [
        [Cell(unit["unit"]), *(number(unit[when][w], 6) if w in unit[when] else Cell("")
                               for w in widths for when in ("error_before", "error_after"))]
        for unit in told
    ]  # fmt: skip
    return [Table("errors", ["block", *(f"{w} {when}" for w in widths for when in ("before", "after"))], rows)]
