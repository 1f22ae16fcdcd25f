"""The pages say what the published results say, and what they tell a reader to type exists."""

import hashlib
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pages
import pandas as pd
import pytest
import yaml
from plan import Plan

from ptmq.cli import parser
from ptmq.methods.interface import discover
from ptmq.suite.profile import read_profile, validate

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "results" / "published"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROFILES = sorted(path.parent.name for path in PUBLISHED.glob("*/runs.csv"))
UNITS = r"%|points?\b|s\b|ms\b|[KMG]i?B\b|times\b|hours?\b|minutes?\b"
RESULT = re.compile(rf"(?<![\w.])[-+±]?\d[\d,]*(?:\.\d+|(?:\.\d+)?\s?(?:{UNITS}))")
NO_RESULT = {
    "95 %": "the level of every interval",
    "3.11": "the version of Python",
}
CODE = re.compile(r"```.*?```", re.DOTALL)


def names(paths):
    return pytest.mark.parametrize("page", paths, ids=lambda path: path.name)


def tables(text: str) -> list[list[str]]:
    """The rows of all Markdown tables as lists of cells, without what lies in code."""
    found = [line for line in CODE.sub("", text).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


@pytest.fixture
def published(tmp_path) -> Path:
    """A copy of the published tables of two profiles, with the records behind them."""
    for profile in ("cifar10", "cifar10_ablations"):
        shutil.copytree(PUBLISHED / profile, tmp_path / profile, ignore=shutil.ignore_patterns("figures", "records"))
        (tmp_path / profile / "records").symlink_to(PUBLISHED / profile / "records")
    return tmp_path


def checked(text: str, published: Path, *more: str) -> str:
    """What pages.py says of a page with this text."""
    page = published / "page.md"
    page.write_text(text)
    try:
        pages.main(["--published", str(published), *more, str(page)])
    except SystemExit as stop:
        return str(stop.code)
    return ""


def test_a_claim_that_was_read_in_several_ways_shows_the_least_and_the_most_on_each_network(tmp_path):
    (tmp_path / "some" / "tables").mkdir(parents=True)
    lines = [
        (", one way", "a", -2, "does not hold"), (", another", "a", -10, "does not hold"),
        (", one way", "b", 4, "does not hold"), ("", "c", 3, "holds"),
    ]  # fmt: skip
    table = [
        {
            "claim": f"it gains{way} [{network}, 50 iterations]",
            "paper": "+3",
            "ours": ours,
            "verdict": verdict,
            "reason": "",
        }
        for way, network, ours, verdict in lines
    ]
    pd.DataFrame(table).to_csv(tmp_path / "some" / "tables" / "verdict.csv", index=False)
    found = pages.claims(pages.Published(tmp_path), "some", "it gains")
    assert "| **does not hold** (a -10 to -2 in 2 lines, b 4); **holds** (c 3) |" in found


# ---------------------------------------------------------------- the pages of the project
@names(PAGES)
def test_a_page_says_what_the_published_results_say(page):
    pages.main(["--check", str(page)])


@names([page for page in PAGES if page.name != "statistics.md"])
def test_no_result_is_typed(page):
    """The page on statistics has constants of formulas and of simulations, which
    tests/e2e/test_simulated_verdicts.py works out."""
    text = CODE.sub("", pages.PLACE.sub("", page.read_text()))
    text = re.sub(r"`[^`\n]*`|\]\([^)]*\)", "", text)  # settings and addresses
    typed = [match[0] for match in RESULT.finditer(text) if match[0] not in NO_RESULT]
    assert not typed, f"write them as places that pages.py fills in, or give a reason in NO_RESULT: {typed}"


@names(PAGES)
def test_no_table_is_wider_than_a_screen(page):
    assert max(map(len, tables(page.read_text())), default=0) <= 12


def test_the_readme_is_a_page_to_read():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150 and len(commands(text)) >= 3


def test_the_headline_table_compares_trained_networks():
    """At most nine methods, and none that is far from trained: those stand in docs/results.md with the reason."""
    (block,) = (m["lines"] for m in pages.PLACE.finditer((ROOT / "README.md").read_text()) if m["block"] and
                m["block"].startswith("headline"))  # fmt: skip
    header, _, *rows = tables(block)
    at = header.index("W8A8")
    assert 1 < len(rows) <= 9
    assert all(float(row[at].strip("*").split(" ")[0]) >= 85 for row in rows)


def test_the_page_of_the_methods_has_every_method():
    page = (ROOT / "docs" / "methods.md").read_text()
    rows = [row[0].strip("`") for row in tables(page) if row[0].startswith("`")]
    assert sorted(rows) == sorted(discover())


@names(PAGES)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", CODE.sub("", linked.read_text()), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> list[list[str]]:
    """The Snakemake commands of a page, in code blocks and in lines, as words."""
    spans = re.findall(r"`([^`\n]+)`", CODE.sub("", text))
    lines = [line for block in CODE.findall(text) for line in block.splitlines()[1:-1]]
    found = [shlex.split(line, comments=True) for line in spans + lines if "snakemake" in line.split(" ")[0]]
    return [words for words in found if "--cores" in words or "--profile" in words]


@names(PAGES)
def test_commands_name_what_there_is(page):
    """Profiles, keys of the configuration with their values, and targets."""
    rules = "\n".join(path.read_text() for path in [ROOT / "Snakefile", *(ROOT / "workflow/rules").glob("*.smk")])
    targets = set(re.findall(r"^ *rule (\w+):", rules, re.MULTILINE))
    for words in commands(page.read_text()):
        options = {word: words[at + 1 :] for at, word in enumerate(words) if word.startswith("--")}
        profile = read_profile(ROOT / options.get("--configfile", ["workflow/config/digits.yaml"])[0])
        for item in options.get("--config", []):
            key, separator, value = item.partition("=")
            if not separator:
                break
            given = yaml.safe_load(value)
            profile[key] = {**profile[key], **given} if key == "methods" else given
        plan = Plan(validate(profile), "results/mine", str(PUBLISHED))
        if "--profile" in options:
            assert (ROOT / options["--profile"][0] / "config.yaml").exists()
        named = {word for word in words if re.fullmatch(r"[a-z_]+", word)} - {"snakemake"}
        assert named <= targets | set(plan.reports()), words


@names(PAGES)
def test_modules_that_are_named_exist(page):
    for target in re.findall(r"python -m ptmq (\w+)", page.read_text()):
        assert target in parser().format_help()


@pytest.mark.parametrize("profile", PROFILES)
def test_published_results_are_their_records(profile):
    """Every row is in a record, and every record names the commit of clean code that made it; none has failed."""
    root = PUBLISHED / profile
    runs = pd.read_csv(root / "runs.csv")
    assert len(runs) and set(runs.status) <= {"done", "not run"}
    for row in runs[runs.status == "done"].itertuples():
        variant, _, mode = row.variant.partition("+")
        name = f"{row.backbone}/{row.method}/{variant}/{row.label}/seed{row.seed}.json"
        record = json.loads((root / "records" / name).read_text())
        key = (row.w_bits, row.a_bits, mode)
        line = next(r for r in record["results"] if (r["w_bits"], r["a_bits"], r.get("mode", "")) == key)
        assert line["top1"] == row.top1 and line["images"] == row.images
        assert re.fullmatch(r"[0-9a-f]{12}", record["commit"]), f"{name} was not made by committed code"


# ---------------------------------------------------------------- the script
NUMBER = "# Page\n\nPTMQ reaches <!-- = top1 cifar10 resnet20 ptmq W3A3 -->{}<!-- /= --> %.\n"
TABLE = "# Page\n\n<!-- begin: table cifar10/tables/accuracy.csv method W4A4 backbone=resnet56 -->\n{}<!-- end -->\n"


@pytest.mark.parametrize("page, line", [(NUMBER, 3), (TABLE, 4)])
def test_a_stale_place_is_named_by_its_line_and_filled_in(published, page, line):
    text = page.format("")
    said = checked(text, published, "--check")
    assert f"page.md:{line}: the page says ''" in said
    assert (published / "page.md").read_text() == text, "--check changes nothing"
    assert checked(text, published) == ""
    filled = (published / "page.md").read_text()
    assert filled != text and checked(filled, published, "--check") == ""
    assert filled.startswith(text.partition("-->")[0]) and filled.endswith(text.rpartition("<!--")[2])


def test_a_digit_that_was_changed_by_hand_is_found(published):
    checked(TABLE.format(""), published)
    filled = (published / "page.md").read_text()
    changed = filled.replace("± 0.13", "± 0.31", 1)
    assert changed != filled
    said = checked(changed, published, "--check")
    assert re.search(r"page\.md:\d+: the page says '.*± 0\.31.*', its files say '.*± 0\.13", said)


def test_another_result_makes_a_page_stale(published):
    checked(NUMBER.format(""), published)
    filled = (published / "page.md").read_text()
    runs = pd.read_csv(published / "cifar10/runs.csv")
    runs.loc[(runs.method == "ptmq") & (runs.w_bits == 3), "top1"] -= 5
    runs.to_csv(published / "cifar10/runs.csv", index=False)
    assert "page.md:3: the page says" in checked(filled, published, "--check")


STATES = "# Page\n\nThe first minus the second is <!-- = {} cifar10 resnet20 ptmq {} W3A3 --><!-- /= -->.\n"


@pytest.mark.parametrize("function, other, carried", [
    ("lead", "nearest_mse", True), ("lead", "qdrop", False), ("lead", "adaptive_bn", False),
    ("undecided", "ptmq/corrected", True), ("undecided", "nearest_mse", False),
    ("difference", "nearest_mse", True), ("difference", "qdrop", True),
])  # fmt: skip
def test_a_sentence_that_the_results_do_not_carry_is_named(published, function, other, carried):
    """One seed has no interval: nothing leads by it."""
    said = checked(STATES.format(function, other), published)
    assert ("page.md:3: " in said) != carried


def test_a_method_of_another_profile_is_paired_as_one_of_the_same(published):
    """The profile that the other is taken from may be the same; then nothing changes."""
    said = [checked(STATES.format("difference", other), published) or (published / "page.md").read_text()
            for other in ("qdrop", "cifar10:qdrop")]  # fmt: skip
    here, there = (re.search(r"W3A3 -->(.*)<!-- /= -->", text).group(1) for text in said)
    assert here == there and "±" in here
    elsewhere = STATES.replace("cifar10 resnet20 ptmq", "cifar10_ablations resnet20 ptmq/gd_none_mfm_none")
    assert checked(elsewhere.format("difference", "cifar10:qdrop"), published) == ""
    told = checked(elsewhere.format("difference", "cifar10:none_such"), published)
    assert "needs none_such (cifar10:default) at W3A3" in told


def test_what_is_wrong_does_not_keep_the_rest_from_being_filled_in(published):
    said = checked(STATES.format("lead", "qdrop") + NUMBER.format(""), published)
    assert "page.md:3:" in said and "it is not ahead" in said
    assert re.search(r"W3A3 -->\d\d\.\d<!-- /= --> %", (published / "page.md").read_text())


@pytest.mark.parametrize("text, said", [
    ("A <!-- = topp1 cifar10 resnet20 ptmq W3A3 --><!-- /= -->", "Did you mean 'top1'?"),
    ("A <!-- = top1 cifar10 resnet20 ptmq --><!-- /= -->", "missing a required argument: 'width'"),
    ("A <!-- = top1 cifar10 resnet20 ptmq W9A9 --><!-- /= -->", "no result of ptmq on resnet20 at W9A9"),
    ("A <!-- = top1 cifar11 resnet20 ptmq W3A3 --><!-- /= -->", "no published table 'cifar11/runs.csv'"),
    ("A <!-- = cell cifar10/tables/accuracy.csv W3A3 backbone=resnet20 --><!-- /= -->", "Choose one row."),
    ("A <!-- = cell cifar10/tables/accuracy.csv W3A3 bakbone=resnet20 --><!-- /= -->", "Did you mean 'backbone'?"),
    ("A <!-- = span cifar10/tables/accuracy.csv method 1 --><!-- /= -->", "is not a number"),
    ("A <!-- = hours cifar10 -->9", "has no partner"),
    ("- <!-- = hours cifar10 -->9<!-- /= --> hours", "cannot begin a line"),
    ("<!-- begin: tabel cifar10/tables/cost.csv method -->\n<!-- end -->", "Did you mean 'table'?"),
])  # fmt: skip
def test_a_mistake_in_a_marker_is_a_sentence(published, text, said):
    told = checked(f"{text}\n", published, "--check")
    assert told.startswith(str(published / "page.md") + ":1: ") and said in told


def test_a_run_that_was_not_run_has_no_mean(published):
    runs = pd.read_csv(published / "cifar10/runs.csv", dtype=str)
    runs.loc[runs.method == "ptmq", ["status", "top1"]] = "not run", None
    runs.to_csv(published / "cifar10/runs.csv", index=False)
    said = checked("A <!-- = top1 cifar10 resnet20 ptmq W3A3 -->9<!-- /= -->\n", published)
    assert "no result of ptmq on resnet20 at W3A3" in said


def test_a_row_is_chosen_by_any_of_several_patterns(published):
    path = "cifar10/tables/accuracy.csv"
    both = "<!-- begin: table {} method backbone=resnet56|shuffle* method=ptmq|qdrop -->\n<!-- end -->\n"
    checked(both.format(path), published)
    rows = tables((published / "page.md").read_text())[2:]
    assert rows == [["qdrop"], ["ptmq"]] * 2


@pytest.mark.parametrize("profile", PROFILES)
def test_every_run_counts_once_in_the_hours(profile):
    records = [json.loads(path.read_text()) for path in (PUBLISHED / profile / "records").rglob("*.json")]
    seconds = sum(
        record["environment"]["threads"] * (record["cost"]["seconds"] + record["cost"]["evaluation_seconds"])
        for record in records
    )
    assert float(pages.hours(pages.Published(PUBLISHED), profile)) == pytest.approx(seconds / 3600, abs=0.51)


# ---------------------------------------------------------------- the card of the subset
SUBSET = Path(os.environ.get("PTMQ_DATA_DIR", ROOT / "data")) / "imagenet_subset"


def card(part: str) -> list[str]:
    """The hashes that docs/data.md gives for a part of the subset: of its list, and of its content."""
    (row,) = (row for row in tables((ROOT / "docs/data.md").read_text()) if row[0] == f"`{part}`" and len(row) == 5)
    return [cell.strip("`") for cell in row[-2:]]


def test_the_card_of_the_subset_has_the_hashes_of_the_published_records():
    records = sorted((PUBLISHED / "imagenet_subset/records").rglob("seed*.json"))
    found = {tuple(json.loads(path.read_text())["sha256"]["data"].items()) for path in records}
    listed, content = zip(*map(card, ("train", "val")), strict=True)  # of older records the hashes of the lists
    names = ("imagenet_subset/train", "imagenet_subset/val")
    assert records and found <= {tuple(zip(names, hashes, strict=True)) for hashes in (listed, content)}


@pytest.mark.skipif(not SUBSET.exists(), reason="the subset of ImageNet is not in PTMQ_DATA_DIR")
@pytest.mark.parametrize("part", ["train", "val"])
def test_the_card_of_the_subset_has_the_hashes_of_its_files(part):
    from ptmq.data.datasets import fetch

    lines = hashlib.sha256((SUBSET / f"{part}.txt").read_bytes()).hexdigest()
    assert card(part) == [lines, fetch("imagenet_subset", SUBSET.parent)[f"imagenet_subset/{part}"]]
