"""The site of the results: what its tables say, where its links lead, and what a new record changes."""

import json
import re
import shutil
from pathlib import Path

import pytest
import website
import website_tables

from tests.links import Named

ROOT = Path(__file__).parents[2]
PROFILE = "imagenet_subset"  # few records


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Two published folders: one with runs, one without."""
    folder = tmp_path_factory.mktemp("published")
    for name in (PROFILE, "bench"):
        shutil.copytree(ROOT / "results/published" / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def site(published, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    website.main(["--out", str(out), *map(str, sorted(published.iterdir()))])
    return out


def records(published) -> list[Path]:
    return sorted((published / PROFILE / "records").rglob("*.json"))


# ---------------------------------------------------------------- pages
def test_every_record_has_a_page_and_lies_beside_it(site, published):
    for path in published.rglob("*.json"):
        there = site / path.relative_to(published)
        assert there.with_suffix(".html").exists() and there.read_bytes() == path.read_bytes()


def test_every_link_leads_to_a_file_of_the_site(site):
    pages = sorted(site.rglob("*.html"))
    linked = [(page, address) for page in pages for address in Named(page).addresses]
    assert len(linked) > 10 * len(pages)
    lost = [(page, address) for page, address in linked if not (page.parent / address).resolve().is_file()]
    assert lost == []
    assert all((page.parent / address).resolve().is_relative_to(site) for page, address in linked)


def test_points_of_charts_lead_to_pages(site):
    text = (site / PROFILE / "index.html").read_text()
    charts = [json.loads(found) for found in re.findall(r'application/json">(.*?)</script>', text, re.DOTALL)]
    led = [address for chart in charts for trace in chart["data"] for address in trace.get("customdata", [])]
    assert led and all((site / address).is_file() for address in led)


def test_a_run_shows_what_its_record_says(site, published):
    for path in records(published):
        record = json.loads(path.read_text())
        text = (site / path.relative_to(published)).with_suffix(".html").read_text()
        assert record["sha256"]["weights"] in text and record["commit"] in text
        assert all(f">{line['top1']}<" in text for line in record["results"])
        assert ("Loss against iterations" in text) == any(unit.get("loss") for unit in record["units"])


# ---------------------------------------------------------------- tables
def test_a_number_is_the_mean_of_its_runs_and_leads_to_the_first(published):
    results = website.Results(published / PROFILE, PROFILE)
    table = website_tables.accuracy(results.runs)
    written = (published / PROFILE / "tables/accuracy.csv").read_text()
    cells = [cell for row in table.rows for cell in row if cell.link]
    assert cells and all(cell.text in written for cell in cells)
    for cell in cells:
        record = json.loads((published / cell.link).with_suffix(".json").read_text())
        assert float(cell.order) in [line["top1"] for line in record["results"]]


@pytest.mark.parametrize("text, order", [
    ("88.17 ± 0.08", "88.17"), ("-0.76 (second_hand)", "-0.76"), ("1,024", "1024"), ("100 times (seen)", "100"),
    ("", ""), ("QDrop", "qdrop"),
])  # fmt: skip
def test_a_cell_is_sorted_by_its_number(text, order):
    assert website_tables.cell(text).order == order


def test_what_a_record_says_is_text(published, tmp_path):
    path = tmp_path / PROFILE / "records/net/method/default/multi/seed0.json"
    record = json.loads(records(published)[0].read_text())
    record["environment"]["device_name"] = "<script>alert(1)</script>"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    website.build(tmp_path / "site", [tmp_path / PROFILE])
    text = (tmp_path / "site" / path.relative_to(tmp_path)).with_suffix(".html").read_text()
    assert "&lt;script&gt;alert" in text and "<script>alert" not in text


# ---------------------------------------------------------------- leaderboard
def test_one_record_extends_the_leaderboard(published, tmp_path):
    shutil.copytree(
        ROOT / "results/published/cifar10/records/resnet20/ptmq", tmp_path / "cifar10/records/resnet20/ptmq"
    )
    results = website.Results(tmp_path / "cifar10", "cifar10")
    (before,) = website_tables.leaderboard([results.runs])
    assert [row[0].text for row in before.rows] == ["PTMQ"]
    record = json.loads((tmp_path / "cifar10/records/resnet20/ptmq/default/multi/seed0.json").read_text())
    record["run"]["method"] = "better"
    for line in record["results"]:
        line["top1"] += 1
    path = tmp_path / "cifar10/records/resnet20/better/default/multi/seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    (after,) = website_tables.leaderboard([website.Results(tmp_path / "cifar10", "cifar10").runs])
    assert [row[0].text for row in after.rows] == ["better", "PTMQ"], "the best first"


def test_results_on_images_that_were_not_held_back_are_on_no_leaderboard(published):
    results = website.Results(ROOT / "results/published/cifar10_tuning", "cifar10_tuning")
    assert len(results.runs) and website_tables.leaderboard([results.runs]) == []


def test_own_results_stand_beside_the_published_ones(published, tmp_path):
    own = tmp_path / "results" / PROFILE
    shutil.copytree(published / PROFILE, tmp_path / "results/published" / PROFILE)
    shutil.copytree(published / PROFILE / "records", own / "records")
    out = own / "site"
    website.build(out, [own, tmp_path / "results/published" / PROFILE, tmp_path / "nothing"])
    assert (out / PROFILE / "index.html").exists() and (out / "published" / PROFILE / "index.html").exists()
