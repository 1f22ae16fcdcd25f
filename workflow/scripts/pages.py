"""Fills the generated places of Markdown pages from the published results, or tells which of them are out of date.

    pages.py [--check] [--published results/published] [PAGE ...]

A table stands between two lines:  <!-- begin: table cifar10/tables/cost.csv method seconds --> and <!-- end -->
A number stands in a sentence:     ... it reaches <!-- = top1 cifar10 resnet20 ptmq W3A3 -->88.2<!-- /= --> % ...

The first word names a function of this file, the others are its arguments; one with spaces stands in quotation marks.
`column=pattern|pattern` chooses rows, with * for anything. A method is `qdrop`, or `ptmq/gd_none` for a variant; one
that is subtracted may be of another profile, `cifar10:qdrop`. No line of text begins with a marker: Markdown would take
that line for HTML.

`lead` and `undecided` also state something. Where the results do not carry it, the sentence is named and has to be
written anew; without --check everything else is brought up to date.
"""

import argparse
import inspect
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pandas as pd
import profile_keys
from intervals import Estimate
from paired import Missing, Runs
from tables import MULTI, widths_of, with_width

from ptmq.common.errors import InputError, one_of
from ptmq.common.provenance import declared

PROJECT = Path(__file__).resolve().parent.parent.parent
PLACE = re.compile(
    r"(?P<open><!-- = (?P<number>.+?) -->)(?P<text>.*?)<!-- /= -->"
    r"|^(?P<begin><!-- begin: (?P<block>.+?) -->\n)(?P<lines>.*?)^<!-- end -->$",
    re.DOTALL | re.MULTILINE,
)
MARKER = re.compile(r"<!-- (?:= |/= |begin: |end )")
NEEDS = [
    "labels",
    "calibrations",
    "bits a weight",
    "CPU-s for all widths",
]  # columns of the costs that the headline table shows
WHERE = re.compile(r"(\w[^=*]*)=(.*)", re.DOTALL)  # column=pattern


class Uncarried(Exception):
    """The results do not say what a sentence says."""


class Published:
    """The published results in a folder; every file is read once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.table, self.runs = cache(self._table), cache(self._runs)

    def _table(self, path: str) -> pd.DataFrame:
        """A CSV file, every cell as it is written."""
        if not (self.folder / path).is_file():
            raise InputError(f"there is no published table {path!r}. Give its path below {str(self.folder)!r}.")
        return pd.read_csv(self.folder / path, dtype=str, keep_default_na=False)

    def _runs(self, profile: str) -> pd.DataFrame:
        """The runs of a profile, with numbers as numbers."""
        self.table(f"{profile}/runs.csv")
        return pd.read_csv(self.folder / profile / "runs.csv")

    def rows(self, path: str, where: dict[str, str]) -> pd.DataFrame:
        """The rows of a table that fit every pattern; at least one."""
        table = self.table(path)
        for name, pattern in where.items():
            texts = table[one_of(f"column of {path}", name, table.columns)]
            table = table[[any(fnmatchcase(text, each) for each in pattern.split("|")) for text in texts]]
        if table.empty:
            raise InputError(f"{path} has no row with {where}. Write other patterns.")
        return table

    def difference(self, profile: str, backbone: str, method: str, other: str, width: str) -> Estimate:
        """Top-1 of the first method minus that of the second, in points; `profile:method` is of another profile."""
        elsewhere, _, other = other.rpartition(":")
        (one, variant), (two, second) = with_variant(method), with_variant(other)
        runs = self.runs(profile)
        if elsewhere:
            there = self.runs(elsewhere).query("method == @two and variant == @second")
            second, file = f"{elsewhere}:{second}", f"../{elsewhere}/" + there.correct_file
            runs = pd.concat([runs, there.assign(variant=second, correct_file=file)])
        return Runs(runs, backbone, self.folder / profile).difference((one, width, variant), (two, width, second))

    def records(self, profile: str, backbone: str, method: str) -> list[dict]:
        """The records of a method that serves all widths at once, one a seed."""
        name, variant = with_variant(method)
        folder = self.folder / profile / "records" / backbone / name / variant / MULTI
        found = [json.loads(path.read_text()) for path in sorted(folder.glob("seed*.json"))]
        if not found:
            raise InputError(f"{str(folder)!r} has no record. Name another method.")
        return found


def with_variant(method: str) -> tuple[str, str]:
    """Method and variant of `method` or `method/variant`."""
    name, _, variant = method.partition("/")
    return name, variant or "default"


def columns(table: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """The columns that names and patterns mean."""
    found: list[str] = []
    for name in names:
        fitting = [each for each in table.columns if fnmatchcase(each, name)]
        found += fitting if "*" in name and fitting else [one_of("column", name, table.columns)]
    return found


def value(text: str) -> float:
    """A cell as a number, `88.17 ± 0.08` as 88.17."""
    try:
        return float(text.partition(" ")[0])
    except ValueError:
        raise InputError(f"{text!r} is not a number. Choose other rows or another column.") from None


def rounded(number: float, digits: str) -> str:
    """With so many digits behind the point, and commas between thousands."""
    return f"{number:,.{int(digits)}f}"


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    numeric = [all(re.match(r"[*]*[-+]?\d|$", row[at]) for row in body) for at in range(len(header))]
    rule = ["---:" if right else "---" for right in numeric]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [header, rule, *body]]
    return "".join(f"| {' | '.join(row)} |\n" for row in escaped)


# ---------------------------------------------------------------- numbers in a sentence
def top1(published: Published, profile: str, backbone: str, method: str, width: str) -> str:
    """Mean top-1 in percent."""
    name, variant = with_variant(method)
    runs = with_width(published.runs(profile))
    fitting = (runs.backbone == backbone) & (runs.method == name) & (runs.variant == variant) & (runs.width == width)
    done = runs[fitting & (runs.status == "done")]
    if done.empty:
        raise InputError(f"{profile} has no result of {method} on {backbone} at {width}. Name another.")
    return f"{done.top1.mean():.1f}"


def difference(published: Published, profile: str, backbone: str, method: str, other: str, width: str) -> str:
    """The first method minus the second, in points, ± half of the 95 % interval where there are several seeds."""
    return str(published.difference(profile, backbone, method, other, width))


def lead(published: Published, profile: str, backbone: str, method: str, other: str, width: str) -> str:
    """The same, where it states that the first is ahead: the whole interval lies above 0."""
    found = published.difference(profile, backbone, method, other, width)
    if not found.mean - found.half() > 0:
        raise Uncarried(f"{method} minus {other} at {width} is {found}: it is not ahead")
    return str(found)


def undecided(published: Published, profile: str, backbone: str, method: str, other: str, width: str) -> str:
    """The same, where it states that neither is ahead: the interval holds 0."""
    found = published.difference(profile, backbone, method, other, width)
    if not abs(found.mean) <= found.half():
        raise Uncarried(f"{method} minus {other} at {width} is {found}: one is ahead")
    return str(found)


def cell(published: Published, path: str, column: str, digits: str = "", **where: str) -> str:
    """What a table says in one cell, or in several that say the same."""
    found = list(dict.fromkeys(published.rows(path, where)[columns(published.table(path), [column])[0]]))
    if len(found) > 1:
        raise InputError(f"{path} says {', '.join(found)} in {column!r} with {where}. Choose one row.")
    return rounded(value(found[0]), digits) if digits else found[0]


def span(published: Published, path: str, column: str, digits: str = "0", **where: str) -> str:
    """From the least to the largest of several cells."""
    found = [value(text) for text in published.rows(path, where)[columns(published.table(path), [column])[0]]]
    return f"{rounded(min(found), digits)} to {rounded(max(found), digits)}"


def times(
    published: Published, path: str, column: str, method: str, other: str, digits: str = "1", **where: str
) -> str:
    """How many times a cell of one method is that of another."""
    above, below = (
        value(cell(published, path, column, **where, method=name, variant=variant))
        for name, variant in map(with_variant, (method, other))
    )
    return rounded(above / below, digits)


def record(published: Published, profile: str, backbone: str, method: str, path: str, digits: str = "0") -> str:
    """A number of the records, by the names that lead to it such as cost.seconds; the mean over the seeds."""
    found = published.records(profile, backbone, method)
    for name in path.split("."):
        found = [part[one_of("part of a record", name, part)] for part in found]
    return rounded(sum(found) / len(found), digits)


def hours(published: Published, profile: str) -> str:
    """Hours of one core that all runs of a profile took, one after the other."""
    runs = published.runs(profile)
    runs = runs.assign(variant=runs.variant.str.partition("+")[0])  # one run may have been measured in several ways
    runs = runs.drop_duplicates(["backbone", "method", "variant", "label", "seed"])
    return f"{(runs.threads * (runs.seconds + runs.evaluation_seconds)).sum() / 3600:.0f}"


# ---------------------------------------------------------------- tables
def table(published: Published, path: str, *names: str, **where: str) -> str:
    """Columns of a table, all unless they are named, without empty ones; `old as new` renames one."""
    whole = published.table(path)
    given = [name.partition(" as ") for name in names or whole.columns]
    chosen = [(each, new or each) for old, _, new in given for each in columns(whole, [old])]
    rows = published.rows(path, where)
    filled = [pair for pair in chosen if (rows[pair[0]] != "").any()]
    return markdown([new for _, new in filled], rows[[old for old, _ in filled]].to_numpy().tolist())


def pivot(published: Published, path: str, shown: str, down: str, across: str, **where: str) -> str:
    """One column of a table, by the values of two others."""
    rows = published.rows(path, where)[columns(published.table(path), [shown, down, across])]
    heads, sides = list(dict.fromkeys(rows[across])), list(dict.fromkeys(rows[down]))
    cells = {(row[down], row[across]): row[shown] for row in rows.to_dict("records")}
    return markdown([down, *heads], [[side, *(cells.get((side, head), "") for head in heads)] for side in sides])


def headline(published: Published, profile: str, backbone: str, *methods: str) -> str:
    """Methods by the widths that all of them serve, the best of each in bold, and what each needs for all widths.

    A name leads to the run records, as seen from the README.
    """
    path, cost = f"{profile}/tables/accuracy.csv", f"{profile}/tables/cost.csv"
    rows = [
        published.rows(path, {"backbone": backbone, "method": name, "variant": variant}).iloc[0]
        for name, variant in map(with_variant, methods)
    ]
    served = with_width(published.runs(profile)).query("backbone == @backbone and in_groups")
    widths = widths_of(served)
    best = {width: max((value(row[width]) for row in rows if row[width]), default=0.0) for width in widths}
    body = []
    for row in rows:
        where = {key: row[key] for key in ("backbone", "method", "variant")}
        shown = [f"**{row[w]}**" if row[w] and value(row[w]) == best[w] else row[w] for w in widths]
        needs = [cell(published, cost, name, **where) for name in NEEDS]
        told = "" if row.variant == "default" else f" ({row.variant.replace('_', ' ')})"
        name = declared(row.method, "style", ())[0] + told
        folder = published.folder / profile / "records" / backbone / row.method / row.variant
        body.append([f"[{name}]({os.path.relpath(folder, PROJECT)})", *shown, *needs])
    return markdown(["method", *widths, *NEEDS], body)


def claims(published: Published, profile: str, *texts: str) -> str:
    """The verdict, a row a claim: what its line begins with, and ours on every network."""
    path, body = f"{profile}/tables/verdict.csv", []
    for text in texts:
        rows = published.rows(path, {"claim": f"{text}*"})
        said: dict[str, dict[str, list[str]]] = {}
        for row in rows.to_dict("records"):
            where = place(row["claim"], text) if row["ours"] else ""
            said.setdefault(row["verdict"], {}).setdefault(where, []).append(row["ours"] or row["reason"])
        found = "; ".join(
            f"**{verdict}** ({', '.join(of_lines(*one) for one in ours.items())})" for verdict, ours in said.items()
        )
        body.append([text, cell(published, path, "paper", claim=f"{text}*").replace("_", " "), found])
    return markdown(["the paper says", "its number", "ours"], body)


def place(claim: str, text: str) -> str:
    """The network of a claim's line, `text, reading [network, budget]`."""
    return claim.removeprefix(text).partition(" [")[2].partition(",")[0].removesuffix("]")


def of_lines(network: str, ours: Sequence[str]) -> str:
    """What was found on a network: in one line of the verdict, or the least and the most of several."""
    if len(ours) == 1:
        return f"{network} {ours[0]}".strip()
    least, most = min(ours, key=value), max(ours, key=value)
    return f"{network} {least} to {most} in {len(ours)} lines"


def errors(published: Published, profile: str, backbone: str, width: str, *pairs_and_units: str) -> str:
    """Reconstruction errors of blocks, of one variant of PTMQ over those of another; means over the seeds."""
    pairs = [each.split("/") for each in pairs_and_units if "/" in each]
    units = [each for each in pairs_and_units if "/" not in each]

    def mean(variant: str) -> pd.Series:
        return pd.DataFrame([
            {unit["unit"]: unit["error_after"][one_of("width", width, unit["error_after"])] for unit in found["units"]}
            for found in published.records(profile, backbone, f"ptmq/{variant}")
        ]).mean()  # fmt: skip

    ratios = [mean(above) / mean(below) for above, below in pairs]
    body = [[f"{above} / {below}", *(f"{ratio[one_of('unit', unit, ratio.index)]:.2f}" for unit in units)]
            for (above, below), ratio in zip(pairs, ratios, strict=True)]  # fmt: skip
    return markdown([f"error at {width}", *units], body)


def keys(published: Published) -> str:
    """The keys of a profile, from the schema."""
    return markdown(profile_keys.HEADER, profile_keys.rows())


NUMBERS = {each.__name__: each for each in (top1, difference, lead, undecided, cell, span, times, record, hours)}
TABLES = {each.__name__: each for each in (table, pivot, headline, claims, errors, keys)}


# ---------------------------------------------------------------- pages
def call(published: Published, functions: dict, words: str) -> str:
    """What a marker asks for. Raises InputError where it asks for what there is not."""
    name, *rest = shlex.split(words)
    found = [(word, WHERE.fullmatch(word)) for word in rest]
    positional = [word for word, match in found if match is None]
    where = {match[1]: match[2] for _, match in found if match}
    function = functions[one_of("function", name, functions)]
    try:
        inspect.signature(function).bind(published, *positional, **where)
    except TypeError as error:
        raise InputError(f"{name}: {error}. Look at its arguments in pages.py.") from None
    return function(published, *positional, **where)


def places(text: str, published: Published) -> Iterator[tuple[re.Match, str, str]]:
    """Every generated place: where it is, what stands there now, what has to; or what is wrong with it."""
    for match in PLACE.finditer(text):
        line_so_far = text[: match.start()].rpartition("\n")[2]
        functions, words = (TABLES, match["block"]) if match["block"] else (NUMBERS, match["number"])
        try:
            if match["number"] and not line_so_far.strip(" -*>"):
                raise InputError("a number cannot begin a line. Put a word before it.")
            yield match, call(published, functions, words), ""
        except (InputError, Missing, Uncarried) as error:
            yield match, "", f"{words}: {error}"
    left = MARKER.search(PLACE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text))
    if left:
        yield left, "", f"{left[0]}... has no partner"


def filled(text: str, published: Published) -> tuple[str, list[str], list[str]]:
    """The text with all places brought up to date; the lines where that changed it; the lines that are wrong."""
    parts, at, outdated, wrong = [], 0, [], []
    for match, new, mistake in places(text, published):
        line = text.count("\n", 0, match.start()) + 1
        if mistake:
            wrong.append(f"{line}: {mistake}")
            continue
        old, opening = (match["lines"], match["begin"]) if match["block"] else (match["text"], match["open"])
        outdated += [f"{line + below}: {told}" for below, told in differences(old, new)]
        start = match.start() + len(opening)
        parts += [text[at:start], new]
        at = start + len(old)
    return "".join([*parts, text[at:]]), outdated, wrong


def differences(old: str, new: str) -> Iterator[tuple[int, str]]:
    """The first line in which a place differs, 0 for a number and from 1 in a table, and both versions of it."""
    before, after = old.splitlines(), new.splitlines()
    for at in range(max(len(before), len(after))):
        one, other = (lines[at] if at < len(lines) else "" for lines in (before, after))
        if one != other:
            yield (at + 1 if new.endswith("\n") else 0), f"the page says {one!r}, its files say {other!r}"
            return


def default_pages() -> list[Path]:
    """Those of the project, as they are named from here."""
    found = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
    return [Path(os.path.relpath(page)) for page in found]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a page is out of date")
    parser.add_argument("--published", type=Path, default=PROJECT / "results" / "published")
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="README.md and docs/*.md unless given")
    args = parser.parse_args(argv)
    published, told = Published(args.published), []
    for page in args.pages or default_pages():
        text = page.read_text()
        new, outdated, wrong = filled(text, published)
        told += [f"{page}:{line}" for line in (outdated + wrong if args.check else wrong)]
        if new != text and not args.check:
            page.write_text(new)
            print(f"{page}: {len(outdated)} places brought up to date")
    if told:
        told.append("error: pages differ from the published results. `make paper` fills in numbers, not sentences.")
        sys.exit("\n".join(told))


if __name__ == "__main__":
    main()
