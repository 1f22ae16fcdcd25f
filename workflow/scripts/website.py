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
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import itables
import pandas as pd
from collect import for_all_widths, rows_of_record
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs
from publish import KINDS
from tables import note_of, with_width
from website_charts import charts_of, losses
from website_tables import LINKED, WORKFLOW, Table, accuracy, errors, every_run, leaderboard, listed, written

FIRST = ("verdict", "checks", "cost", "divergence")  # of the written tables; the others follow by name


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
        found = [path for path in found if "results" in json.loads(path.read_text())]
        more = {"origin": "own", "status": "done", "profile": self.address}
        rows = [row | {"page": self.page(path)} | more for path in found for row in rows_of_record(path)]
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
            yield accuracy(self.runs)
        paths = {path.stem: path for path in sorted((self.folder / "tables").glob("*.csv")) if path.stem != LINKED}
        for name in sorted(paths, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)):
            yield written(paths[name], f"{self.address}/tables/{name}.csv")
        if len(self.runs):
            yield every_run(self.runs)

    @property
    def figures(self) -> list[str]:
        """Addresses of the drawn figures."""
        return [f"{self.address}/figures/{path.name}" for path in sorted((self.folder / "figures").glob("*.png"))]


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
        above = Path(address).parent
        page = self.templates.get_template(template).render(
            at=lambda target: os.path.relpath(target, above), book=(self.out.parent / "index.html").exists(), **content
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
    boards = leaderboard([each.runs for each in all_results if len(each.runs)])
    site.write("leaderboard.html", "leaderboard.html", tables=boards)
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
