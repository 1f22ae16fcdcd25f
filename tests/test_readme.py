"""The README and the committed results say the same."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

COPY = tempfile.TemporaryDirectory()


def published() -> Path:
    """The project as git's index has it: a profile that was run here has put its own tables in the place of those that
    the README shows. Without git the folder itself.
    """
    git = ["git", "-C", ROOT, "checkout-index", "--all", f"--prefix={COPY.name}/"]
    is_checkout = shutil.which("git") and (ROOT / ".git").exists()
    return Path(COPY.name) if is_checkout and subprocess.run(git).returncode == 0 else ROOT


HERE = published()
README = (HERE / "README.md").read_text()
PUBLISHED = sorted({path.parent.name for path in (HERE / "results").glob("*/runs.csv")} - {"digits"})


@pytest.mark.parametrize("profile", ["cifar10", "imagenet_subset"])
def test_the_table_is_the_committed_one(profile):
    for line in (HERE / "results" / profile / "tables/accuracy.md").read_text().splitlines():
        assert line in README


@pytest.mark.parametrize("table", ["steps", "processes"])
def test_the_benchmark_is_the_committed_one(table):
    for line in (HERE / f"results/bench/tables/{table}.md").read_text().splitlines():
        assert line in README
    for path in (HERE / "results/bench/records").glob("*/*.json"):
        assert re.fullmatch(r"[0-9a-f]{12}", json.loads(path.read_text())["commit"]), path


def test_the_verdict_is_the_committed_one():
    """All of it but the lines that need ImageNet."""
    lines = (HERE / "results/cifar10/tables/verdict.md").read_text().splitlines()
    for line in lines:
        assert line in README or "needs ImageNet" in line


def test_the_ablations_are_the_committed_ones():
    page = (HERE / "docs/ablations.md").read_text()
    for path in (HERE / "results/cifar10_ablations/tables").glob("ablation_*.md"):
        for line in path.read_text().splitlines():
            assert line in page, path.name


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_modules_that_are_named_exist():
    for target in re.findall(r"`(?:\.venv/bin/)?python -m ptmq (\w+)", README):
        from ptmq.cli import parser

        assert target in parser().format_help()


@pytest.mark.parametrize("profile", PUBLISHED)
def test_published_results_are_their_records(profile):
    """Every row is in a record, and every record names the commit of clean code that made it; none has failed."""
    root = HERE / "results" / profile
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
