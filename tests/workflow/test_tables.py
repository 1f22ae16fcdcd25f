"""Tables: what stands in which, in formats that a paper can compile and a page can show."""

import re

import pandas as pd
import pytest
from tables import write

from tests.records import BOTH, FP, Results, on_dataset, record, script
from tests.toys import ROOT


# ---------------------------------------------------------------- what stands where
def test_cells_are_mean_and_deviation_over_seeds(results):
    table = results.table()
    assert list(table.index) == ["fp32", "qdrop", "ptmq"], "ceiling first, PTMQ last"
    assert list(table.columns) == ["backbone", "variant", "W3A3", "W8A8", "W32A32"]
    assert table.loc["ptmq", ["W3A3", "W8A8"]].tolist() == ["81.00 ± 1.41", "91.00 ± 0.00"]
    assert table.loc["qdrop", "W3A3"] == "82.00" and table.loc["fp32", "W32A32"] == "92.00"


def test_markdown_and_latex_say_the_same(results):
    results.table()
    lines = (results.root / "tables/accuracy.md").read_text().splitlines()
    assert lines[:2] == ["| backbone | method | variant | W3A3 | W8A8 | W32A32 |", "|---|---|---|---|---|---|"]
    assert lines[-1] == "| toy | ptmq | default | 81.00 ± 1.41 | 91.00 ± 0.00 |  |"
    text = (results.root / "tables/accuracy.tex").read_text()
    assert r"toy & ptmq & default & 81.00 $\pm$ 1.41 & 91.00 $\pm$ 0.00 &  \\" in text


def test_cost_counts_what_all_widths_need(results):
    """A single-width method needs a calibration for each width of the groups, run or not; others are left out."""
    results.add(record("qdrop", {"W3A32": 90.0}, label="W3A32", cost={"seconds": 70.0}))
    results.add(record("adaround", {"W3A3": 80.0}, label="W3A3", cost={"seconds": 4.0}))
    cost = results.table("cost")
    given = ["calibrations", "s a calibration", "s for all widths"]
    assert cost.loc["ptmq", given].tolist() == ["1", "10 ± 0", "10"]
    assert cost.loc["qdrop", given].tolist() == ["2", "10 ± 0", "20"], "the width beside the groups is not charged"
    assert cost.loc["adaround", given].tolist() == ["2", "4", "8"]


def test_models_of_one_width_each_store_8_bits_of_their_first_and_last_layer(results):
    """The share of these layers, here a tenth, is known from the models that were run, for all widths and methods."""
    results.add(record("adaround", {"W3A3": 80.0}, label="W3A3"))
    assert results.table("cost").loc[["qdrop", "adaround"], "bits a weight"].tolist() == ["11.5", "11.5"]


def test_cost_says_what_was_given(two_ways):
    cost = two_ways.table("cost").reset_index().set_index(["method", "variant"])
    given = ["images", "labels", "epochs", "iterations in all", "images a switch", "ms a switch"]
    assert list(cost.loc[("multiquant", "default"), given]) == ["1000", "1000", "5", "35", "1000", "20"]
    assert list(cost.loc[("ptmq", "default"), given]) == ["64", "", "", "5", "", ""]


def test_cost_says_what_else_the_machine_did(tmp_path):
    results = Results(tmp_path)
    results.add(record("ptmq", BOTH, cost={"load_start": 1.0, "load_end": 2.0}))
    results.add(record("nearest_mse", BOTH))
    assert results.table("cost").load.to_dict() == {"ptmq": "1.0 to 2.0", "nearest_mse": ""}


def test_another_way_to_measure_a_model_is_a_row_of_its_own(two_ways):
    table = two_ways.table().reset_index().set_index(["method", "variant"])
    assert table.loc[("multiquant", "default"), "W3A3"] == "85.00"
    assert table.loc[("multiquant", "default+no_recalibration"), "W3A3"] == "10.00"


def test_what_is_missing_is_said_and_leaves_the_rest(results):
    for width in ("W3A3", "W8A8"):
        results.path("qdrop", label=width).unlink()
    log = results.root / "logs/quantize/toy/qdrop/default/W3A3/seed0.log"
    log.parent.mkdir(parents=True)
    log.write_text("error: ...")
    table = results.table("accuracy", "--partial")
    assert table.loc["qdrop", ["W3A3", "W8A8"]].tolist() == [f"failed ({log})", "not run"]
    assert table.loc["ptmq", "W3A3"] == "81.00 ± 1.41"
    assert results.table("cost", "--partial").loc["ptmq", "peak MiB"] == "3", "whole numbers stay whole beside it"


def test_a_seed_that_is_missing_hides_no_other(results):
    results.path("ptmq", 1).unlink()
    assert results.table("accuracy", "--partial").loc["ptmq", "W3A3"] == "80.00, 1 of 2 seeds, else not run"


def test_a_missing_seed_is_told_for_every_way_of_measuring(two_ways):
    two_ways.names.append("toy/multiquant/default/multi/seed1:W3A3")
    table = two_ways.table("accuracy", "--partial").reset_index().set_index(["method", "variant"])["W3A3"]
    assert table["multiquant", "default"] == "85.00, 1 of 2 seeds, else not run"
    assert table["multiquant", "default+no_recalibration"] == "10.00, 1 of 2 seeds, else not run"


def test_published_rows_stand_beside_ones_own(results, tmp_path):
    out = tmp_path / "runs.csv"
    script("collect", "--root", results.root, "--out", out, "--own", *results.names[:2],
           "--published", results.root, *results.names)  # fmt: skip
    script("tables", "--runs", out, "--out", tmp_path)
    table = pd.read_csv(tmp_path / "accuracy.csv", dtype=str, keep_default_na=False)
    rows = table.set_index(["method", "variant"])["W3A3"]
    assert rows["ptmq", "default"] == "80.00" and rows["ptmq", "published"] == "81.00 ± 1.41"
    assert rows["qdrop", "published"] == "82.00" and list(table.method).count("fp32") == 1, "the ceiling stands once"


def test_divergence_leaves_out_methods_that_train_with_labels(two_ways):
    table = two_ways.table("divergence")
    assert set(table.index) == {"qdrop", "ptmq"} and set(table["W3A3"]) == {"0.1000"}


def test_small_divergences_keep_the_digits_of_their_ratio(tmp_path):
    """At 8 bits KL is a thousandth, and pages say how many times another's it is."""
    results = Results(tmp_path)
    for method, kl in (("ptmq", 0.00186), ("nearest_mse", 0.00098)):
        made = record(method, {"W8A8": 90.0})
        made["results"][0]["kl"] = kl
        results.add(made)
    kls = results.table("divergence")["W8A8"].astype(float)
    assert kls["ptmq"] / kls["nearest_mse"] == pytest.approx(0.00186 / 0.00098, rel=1e-3)


# ---------------------------------------------------------------- LaTeX
@pytest.fixture
def two_networks(tmp_path):
    """The folder of the tables of two networks' runs."""
    results = Results(tmp_path)
    results.add(record("fp32", FP, label="W32A32"))
    results.add(record("nearest_mse", BOTH, run={"backbone": "toy_2"}))
    for seed in range(3):
        results.add(record("ptmq", BOTH, seed, cost={"load_start": 1.0, "load_end": 2.0}))
    results.table()
    return tmp_path / "tables"


def rows_of(tabular: str) -> list[list[str]]:
    """The cells of a tabular, row by row."""
    body = re.sub(r"\\(toprule|midrule|bottomrule)\n", "", tabular.partition("\n")[2])
    return [re.split(r"(?<!\\)&", line) for line in re.findall(r"(.*?) \\\\\n", body)]


def compiles(text: str) -> None:
    """Hold a file to what LaTeX asks of it, with booktabs and graphicx: no compiler is needed to see a broken table."""
    text = re.sub(r"(?<!\\)%.*", "", text)
    assert text.isascii(), "letters that pdfLaTeX does not know"
    opened = []
    for kind, name in re.findall(r"\\(begin|end){(\w+)}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0 and text.count("$") % 2 == 0
    outside = re.sub(r"\$[^$]*\$", "", text)  # but for mathematics
    assert not re.findall(r"(?<!\\)[#_^~]", re.sub(r"\\label{.*}", "", outside))
    for columns, body in re.findall(r"\\begin{tabular}{((?:[lrc]|p{\d+cm})+)}(.*?)\\end{tabular}", text, re.DOTALL):
        count = len(re.findall(r"[lrc](?!m)|p{\d+cm}", columns))
        assert [body.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
        for cells in rows_of(body):
            assert len(cells) == count, cells
    assert len(re.findall(r"\\begin{tabular}{", text)) == len(
        re.findall(r"\\begin{tabular}{(?:[lrc]|p{\d+cm})+}", text)
    )


def test_what_the_parser_refuses():
    good = "\\begin{tabular}{lr}\n\\toprule\na & b \\\\\n\\midrule\n\\bottomrule\n\\end{tabular}"
    compiles(good)
    for bad in (good.replace("a &", "a"), good.replace("\\midrule\n", ""), good.replace("a", "a_1"), good.replace("a", "γ"),
                good.replace("a", "{a"), good.replace("\\end{tabular}", "")):  # fmt: skip
        with pytest.raises(AssertionError):
            compiles(bad)


@pytest.mark.parametrize("name", ["accuracy", "cost", "divergence"])
def test_latex_compiles(two_networks, name):
    compiles((two_networks / f"{name}.tex").read_text())


def test_every_published_table_compiles():
    published = sorted((ROOT / "results/published").rglob("tables/*.tex"))
    assert published
    for path in published:
        compiles(path.read_text())


def test_a_network_is_a_table_with_a_caption_and_a_label(two_networks):
    text = (two_networks / "accuracy.tex").read_text()
    assert text.count(r"\begin{table}") == 2
    assert r"\caption{accuracy, toy\_2}" in text and r"\label{tab:accuracy-toy-2}" in text


def test_results_on_images_that_nobody_else_has_say_so(results):
    """In the captions of LaTeX, above the tables of the others; results on other datasets say nothing."""

    def made() -> dict[str, str]:
        results.table()
        return {kind: (results.root / f"tables/accuracy.{kind}").read_text() for kind in ("md", "html", "tex")}

    assert not [kind for kind, text in made().items() if "reproducible" in text]
    on_dataset(results, "imagenet_subset")
    texts, said = made(), "ot reproducible by others: its images are not published"
    assert texts["md"].startswith(f"*N{said}.*\n\n|") and f"<p>N{said}.</p>" in texts["html"]
    assert rf"\caption{{accuracy, toy (n{said})}}" in texts["tex"]


def test_wide_tables_are_scaled_to_the_text(tmp_path):
    narrow = pd.DataFrame({"backbone": ["toy"], "γ": ["50 %"], "text": ["at least ≥ 3 & more, 2×2"]})
    write(narrow, tmp_path / "narrow", by=None)
    compiles((tmp_path / "narrow.tex").read_text())
    assert r"\resizebox" not in (tmp_path / "narrow.tex").read_text()
    write(narrow.assign(**{f"column {i}": "1234567" for i in range(14)}), tmp_path / "wide", by=None)
    compiles((tmp_path / "wide.tex").read_text())
    assert r"\resizebox{\linewidth}" in (tmp_path / "wide.tex").read_text()


def test_a_table_without_rows_is_its_header(tmp_path):
    """Such as the verdict where no run says anything about a claim."""
    write(pd.DataFrame([], columns=["claim", "verdict"]), tmp_path / "empty", by=None)
    assert (tmp_path / "empty.csv").read_text() == "claim,verdict\n"
    for extension in ("md", "tex", "html"):
        text = (tmp_path / f"empty.{extension}").read_text()
        assert "claim" in text and "verdict" in text
