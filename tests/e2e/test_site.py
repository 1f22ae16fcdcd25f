"""The site in a browser: it is built without a warning, and a reader sorts, filters, and gets from a number to its run."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import website

from tests.links import Named
from tests.projects import QUICK, snakemake
from tests.toys import ROOT

PROFILE = "results/cifar10/index.html"
RUN = "results/cifar10/records/resnet20/ptmq/default/multi/seed0.html"
PAGES = [PROFILE, RUN, "results/index.html", "results/leaderboard.html", "index.html", "method.html", "api.html"]
PAGES += [
    "configuration.html",
    "results.html",
    "use.html",
    "notebooks/switch_widths.html",
    "files/CONTRIBUTING.md.html",
]
LOCAL = ("file:", "data:", "blob:")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """What `make docs` makes."""
    out = tmp_path_factory.mktemp("site") / "html"
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(out)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folders = sorted(path for path in (ROOT / "results/published").iterdir() if path.is_dir())
    website.build(out / "results", folders)
    return out


@pytest.fixture
def visit(site, browser):
    """Opens a page of the site; afterwards nothing may have gone wrong, and nothing have left the machine."""
    opened, wrong = [], []

    def open_page(address: str, **options):
        page = browser.new_context(**options).new_page()
        opened.append(page)
        page.on("request", lambda request: None if request.url.startswith(LOCAL) else wrong.append(request.url))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto((site / address).as_uri())
        return page

    yield open_page
    for page in opened:
        page.context.close()
    assert wrong == []


def ready(page, name: str):
    """A table of the page, once it sorts."""
    table = page.locator(f"table[data-name={name}][data-ready]")
    table.wait_for()
    return table


def column(table, at: int) -> list[str]:
    return table.locator(f"tbody tr td:nth-child({at + 1})").all_inner_texts()


# ---------------------------------------------------------------- links
def test_every_link_of_a_page_leads_to_a_page_and_a_place_in_it(site):
    pages = {page: Named(page) for page in sorted(site.rglob("*.html")) if "_static" not in page.parts}
    addresses = [(page, address) for page, named in pages.items() for address in named.addresses]
    inner = [(page, *address.partition("#")[::2]) for page, address in addresses if "://" not in address]
    assert len(inner) > 10 * len(pages) and len(pages) > 300
    lost = []
    for page, path, place in inner:
        target = (page.parent / path.partition("?")[0]).resolve() if path else page
        known = not place or target not in pages or place in pages[target].places
        lost += [] if target.is_file() and known else [(page.relative_to(site), path, place)]
    assert lost == []


# ---------------------------------------------------------------- tables
def test_a_table_sorts_by_its_numbers(visit):
    table = ready(visit(PROFILE), "accuracy")
    heads = table.locator("thead th").all_inner_texts()
    at = [head.strip() for head in heads].index("W3A3")
    for order in ("ascending", "descending"):
        table.locator("thead th").nth(at).click()
        table.locator(f"thead th[aria-sort={order}]").wait_for()
        numbers = [float(text.split(" ")[0]) for text in column(table, at) if text]
        assert len(set(numbers)) > 5 and numbers == sorted(numbers, reverse=order == "descending")


def test_a_table_filters_by_words_and_by_choice(visit):
    page = visit(PROFILE)
    table = ready(page, "accuracy")
    section = page.locator("section#accuracy")
    everything = len(column(table, 1))
    section.locator("input[type=search]").fill("qdrop")
    assert set(column(table, 1)) == {"qdrop"}
    section.locator("input[type=search]").fill("")
    assert len(column(table, 1)) == everything
    section.get_by_label("only this method").select_option("ptmq")
    section.get_by_label("only this backbone").select_option("resnet20")
    assert column(table, 0) == ["resnet20"] and column(table, 1) == ["ptmq"]


# ---------------------------------------------------------------- from a number to its run
def test_a_click_on_a_number_opens_its_run(visit):
    page = visit(PROFILE)
    table = ready(page, "accuracy")
    row = table.locator("tbody tr").filter(has_text="resnet20").filter(has=page.get_by_text("ptmq", exact=True)).first
    row.locator("a").first.click()
    page.wait_for_url(f"**/{RUN}")
    record = json.loads((ROOT / "results/published" / RUN.removeprefix("results/")).with_suffix(".json").read_text())
    assert "resnet20 / ptmq" in page.locator("h1").inner_text()
    assert column(ready(page, "results"), 3) == [str(line["top1"]) for line in record["results"]]
    assert record["sha256"]["weights"] in page.locator("#sha256").inner_text()
    assert page.locator("#losses .js-plotly-plot .scatterlayer path").count() >= len(record["units"])
    page.get_by_role("link", name="seed1").click()
    assert page.url.endswith("seed1.html")


def test_a_click_on_a_point_of_a_chart_opens_its_run(visit):
    page = visit(PROFILE)
    chart = page.locator("figure.chart .js-plotly-plot").first
    chart.scroll_into_view_if_needed()
    point = chart.locator(".scatterlayer .trace .points path").last
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_timeout(300)  # Plotly looks for the nearest point when the mouse rests
    page.mouse.down()
    page.mouse.up()
    page.wait_for_url("**/records/**/seed*.html")


# ---------------------------------------------------------------- every reader
@pytest.mark.parametrize("address", PAGES)
def test_a_page_fits_a_phone(visit, address):
    page = visit(address, viewport={"width": 390, "height": 844})
    page.wait_for_load_state("load")
    page.wait_for_timeout(500)  # scripts change the layout
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("h1").first.is_visible()


def test_without_scripts_there_are_tables_and_drawings(visit):
    page = visit(PROFILE, java_script_enabled=False)
    assert page.locator("table[data-name=accuracy] tbody tr").count() > 10
    drawing = page.locator("figure.chart noscript").first
    assert "figures/accuracy.png" in drawing.inner_html()


def test_pages_lead_to_the_results_and_back(visit):
    page = visit("index.html")
    page.get_by_role("link", name="every run").click()
    page.wait_for_url("**/results/index.html")
    page.get_by_role("link", name="PTMQ suite").click()
    assert "PTMQ suite" in page.locator("h1").inner_text()


def test_formulas_are_drawn_by_the_browser(visit):
    assert visit("method.html").locator("math").count() > 10


# ---------------------------------------------------------------- the notebook
def test_the_notebook_runs():
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "docs/notebooks/switch_widths.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    stored = [len(cell.outputs) for cell in cells]
    assert any("iterations=200" in cell.source for cell in cells) and any(stored)
    for cell in cells:
        cell.source = cell.source.replace("iterations=200", "iterations=2")
    environment = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=environment).execute()
    assert [len(cell.outputs) for cell in cells] == stored


def test_the_results_become_a_site(project):
    done = snakemake(project, "site", "--config", QUICK)
    assert done.returncode == 0, done.stderr
    site = project / "results/digits/site"
    top1 = pd.read_csv(project / "results/digits/runs.csv").top1.iloc[0]
    assert f"{top1:.2f}" in (site / "digits/index.html").read_text()
    assert (site / "digits/records/digits_resnet/ptmq/default/multi/seed0.html").exists()
