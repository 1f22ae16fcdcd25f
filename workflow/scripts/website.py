"""Run records and tables -> a site: results to sort and to filter, charts, a page for each run, a leaderboard.

    website.py --out docs/_build/html/results results/published/*
    website.py --out results/digits/site results/digits

Every folder of results becomes a page. What it shows is what lies there: records, tables, figures. The site is plain
HTML, needs no server and asks nothing of another machine. The templates are in workflow/site.
"""

import argparse
import base64
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import itables
import pandas as pd
from collect import MULTI, for_all_widths, rows_of_record
from docutils.core import publish_parts
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs
from publish import KINDS
from tables import KEYS, mean_sd, note_of, ordered, with_width
from website_charts import charts_of, losses

from ptmq.common.provenance import style_of_method

PROJECT = Path(__file__).resolve().parent.parent.parent
WORKFLOW = PROJECT / "workflow"
FIRST = ("verdict", "checks", "cost", "divergence")  # of the tables; the others follow by name
LINKED = "accuracy"  # the table that is made anew here, with a link to a run in every number
CAPTIONS = {"cost": "tables", "divergence": "tables", "switching": "frontier"}  # of tables that share one
EVERY_RUN = ["backbone", "method", "variant", "label", "seed", "width", "top1", "kl", "seconds", "bits_per_weight"]
NUMBER = re.compile(r"[-+±*]*(\d[\d,]*\.?\d*(?:e[-+]?\d+)?)")
BOOK = Path("docs/_build/html")  # where `make docs` puts the pages


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


class Results:
    """A folder of results. address: where its page lies in the site."""

    def __init__(self, folder: Path, address: str):
        self.folder, self.address = folder, address

    @cached_property
    def records(self) -> list[Path]:
        """All records, also those that are no runs."""
        return [path for kind in KINDS for path in sorted((self.folder / kind).rglob("*.json"))]

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row for each run and width, with the address of the run's page."""
        found = [path for path in self.records if path.is_relative_to(self.folder / "records")]
        rows = [row | {"page": self.page(path), "origin": "own", "status": "done"}
                for path in found if "results" in json.loads(path.read_text()) for row in rows_of_record(path)]  # fmt: skip
        return with_width(for_all_widths(pd.DataFrame(rows))) if rows else pd.DataFrame()

    def page(self, record: Path) -> str:
        """Where a record's page lies in the site."""
        return f"{self.address}/{record.relative_to(self.folder).with_suffix('.html').as_posix()}"

    @property
    def about(self) -> str:
        """What the profile's own file says above its first line, and what has to be known of its images."""
        profile = WORKFLOW / "config" / f"{self.folder.name}.yaml"
        if not profile.exists():
            told = WORKFLOW / "captions" / f"{self.folder.name}.rst"
            return told.read_text() if told.exists() else ""
        comment = takewhile(lambda line: line.startswith("#"), profile.read_text().splitlines())
        note = note_of(self.runs.dataset) if len(self.runs) else ""
        told = [" ".join(line.lstrip("# ") for line in comment), f"{note.capitalize()}." if note else ""]
        return " ".join(filter(None, told))

    @property
    def tables(self) -> Iterator[Table]:
        """The table whose numbers lead to runs, the written tables, and every run."""
        if len(self.runs):
            yield accuracy(self.runs, caption(LINKED))
        paths = {path.stem: path for path in sorted((self.folder / "tables").glob("*.csv")) if path.stem != LINKED}
        for name in sorted(paths, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)):
            frame = pd.read_csv(paths[name], dtype=str, keep_default_na=False)
            rows = [[cell(text) for text in row] for row in frame.to_numpy()]
            yield Table(name, list(frame), rows, caption(name), f"{self.address}/tables/{name}.csv")
        if len(self.runs):
            yield every_run(self.runs)

    @property
    def figures(self) -> list[str]:
        """Addresses of the drawn figures."""
        return [f"{self.address}/figures/{path.name}" for path in sorted((self.folder / "figures").glob("*.png"))]


# ---------------------------------------------------------------- tables
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


def widths_of(runs: pd.DataFrame) -> list[str]:
    """The widths, lowest first."""
    return list(runs.sort_values(["w_bits", "a_bits"]).width.drop_duplicates())


def accuracy(runs: pd.DataFrame, told: str) -> Table:
    """Top-1 by method and width, a link to the run in every number."""
    widths = widths_of(runs)
    cells = {key: over_seeds(group) for key, group in runs.groupby([*KEYS, "width"])}
    keys = ordered(runs[KEYS].drop_duplicates()).itertuples(index=False, name=None)
    rows = [[*map(cell, key), *(cells.get((*key, width), Cell("")) for width in widths)] for key in keys]
    return Table(LINKED, [*KEYS, *widths], rows, told)


def every_run(runs: pd.DataFrame) -> Table:
    """One row a run and width."""
    digits = {"top1": 2, "kl": 4, "seconds": 0, "bits_per_weight": 2}
    rows = [
        [number(row[name], digits[name], row["page"] if name == "top1" else "") if name in digits else cell(str(row[name]))
         for name in EVERY_RUN]
        for row in runs.to_dict("records")
    ]  # fmt: skip
    return Table("runs", [name.replace("_", " ") for name in EVERY_RUN], rows, caption("runs"))


def leaderboard(folders: Sequence[Results]) -> list[Table]:
    """Methods with one model for all widths, on test images; a table for each network."""
    tests = [each.runs.assign(profile=each.address) for each in folders if len(each.runs)]
    runs = pd.concat(tests) if tests else pd.DataFrame(columns=["label", "split", "variant"])
    runs = runs[(runs.label == MULTI) & (runs.split == "test") & (runs.variant == "default")]
    return [
        ranked(f"{dataset}, {backbone}", group) for (dataset, backbone), group in runs.groupby(["dataset", "backbone"])
    ]


def ranked(name: str, runs: pd.DataFrame) -> Table:
    """One network's methods, those with the best mean over the widths that all of them have first."""
    served = runs[runs.in_groups.astype(bool)]
    keys = ["profile", "method"]
    counts = served.drop_duplicates([*keys, "width"]).width.value_counts()
    shared = counts.index[counts == counts.max()]
    widths, rows = widths_of(served), []
    for (profile, method), group in served.groupby(keys):
        cells = {width: over_seeds(each) for width, each in group.groupby("width")}
        mean = group[group.width.isin(shared)].groupby("width").top1.mean().mean()
        rows.append([
            Cell((style_of_method(str(method)) or [method])[0]), number(mean, 2), *(cells.get(w, Cell("")) for w in widths),
            number(group.bits_per_weight.mean(), 2), number(group.seconds.mean(), 0), number(group.labels.max() or None, 0),
            number(group.seed.nunique(), 0), Cell(profile, profile, f"{profile}/index.html"),
        ])  # fmt: skip
    rows.sort(key=lambda row: -float(row[1].order or 0))
    header = ["method", "mean", *widths, "bits a weight", "s", "labels", "seeds", "profile"]
    filled = [at for at in range(len(header)) if any(row[at].text for row in rows)]
    return Table(name, [header[at] for at in filled], [[row[at] for at in filled] for row in rows])


def caption(name: str) -> str:
    """What the report of the workflow says of a table, as HTML."""
    path = WORKFLOW / "captions" / f"{CAPTIONS.get(name, name)}.rst"
    return publish_parts(path.read_text(), writer="html5")["body"] if path.exists() else ""


# ---------------------------------------------------------------- a run
def parts_of(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What decides and explains a result, by sections; what has no section stands in `record`."""
    shown = {name: value for name, value in record.items() if name not in ("results", "units", "training", "points")}
    plain = {name: value for name, value in shown.items() if not isinstance(value, Mapping)}
    return {"record": plain} | {name: flat(value) for name, value in shown.items() if isinstance(value, Mapping)}


def flat(nested: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Names joined by points, lists in one line."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{name}.")
        else:
            found[above + name] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return found


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


# ---------------------------------------------------------------- the site
class Site:
    """Writes pages below a folder. Addresses in templates are counted from there, and made relative to each page."""

    def __init__(self, out: Path):
        self.out = out
        self.templates = Environment(
            loader=FileSystemLoader(WORKFLOW / "site"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self.templates.filters["json"] = lambda value: json.dumps(value).replace("<", "\\u003c")

    def write(self, address: str, template: str, **content: Any) -> None:
        """One page."""
        above = os.path.dirname(address) or "."
        book = self.out.parent if self.out.is_relative_to(PROJECT / BOOK) else None
        page = self.templates.get_template(template).render(
            at=lambda target: os.path.relpath(target, above), book=book is not None, **content
        )
        path = self.out / address
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page)

    def assets(self) -> None:
        """What all pages share, written once: style, tables, charts."""
        bundle = Path(itables.__file__).parent / "html"
        folder = self.out / "assets"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(WORKFLOW / "site" / "site.css", folder)
        shutil.copy(bundle / "dt_bundle.css", folder / "tables.css")
        (folder / "plotly.js").write_text(get_plotlyjs())
        code = base64.b64encode((bundle / "dt_bundle.js").read_bytes()).decode()
        script = (WORKFLOW / "site" / "site.js").read_text()
        (folder / "site.js").write_text(script.replace("BUNDLE", f"data:text/javascript;base64,{code}"))

    def results(self, results: Results) -> None:
        """The page of a folder of results, and those of its records."""
        for kind in ("tables", "figures"):
            for path in sorted((results.folder / kind).glob("*.csv" if kind == "tables" else "*.png")):
                (self.out / results.address / kind).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, self.out / results.address / kind)
        for path in results.records:
            self.record(results, path)
        charts = charts_of(results.runs) if len(results.runs) else []
        self.write(f"{results.address}/index.html", "profile.html", results=results, charts=charts)

    def record(self, results: Results, path: Path) -> None:
        """The page of a record, and beside it the record itself."""
        record, address = json.loads(path.read_text()), results.page(path)
        others = {other.stem: results.page(other) for other in sorted(path.parent.glob("*.json"))}
        found = [*listed("results", record.get("results", [])), *listed("points", record.get("points", []))]
        name = path.relative_to(results.folder).with_suffix("").parts
        self.write(
            address, "run.html", results=results, name=name, parts=parts_of(record), others=others, here=address,
            tables=[*found, *errors(record.get("units", []))], chart_of_losses=losses(record), file=path.name,
        )  # fmt: skip
        shutil.copy(path, self.out / Path(address).parent)


def build(out: Path, folders: Sequence[Path]) -> None:
    """The site of these folders of results."""
    folders = [folder.resolve() for folder in folders if folder.is_dir()]
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    all_results = [Results(folder, folder.relative_to(common).as_posix()) for folder in folders]
    site = Site(out.resolve())
    site.assets()
    for results in all_results:
        site.results(results)
    site.write("leaderboard.html", "leaderboard.html", tables=leaderboard(all_results))
    site.write("index.html", "index.html", folders=all_results)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    args = parser.parse_args(argv)
    build(args.out, args.folders)
    print(f"{args.out / 'index.html'}")


if __name__ == "__main__":
    main()
