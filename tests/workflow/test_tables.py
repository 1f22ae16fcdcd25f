"""Tables in the formats that are read: what a paper can compile, what a page can show, what stands in which table."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from tables import write

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "workflow" / "scripts"
GROUPS = {"low": ["W3A3"], "high": ["W8A8"]}


def script(name: str, *arguments) -> None:
    command = [sys.executable, SCRIPTS / f"{name}.py", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def record(
    folder: Path, method: str, seed: int, top1: float, code: str | None = "aa", backbone: str = "toy", **cost
) -> str:
    """Write a record as the evaluation stage does; its name with widths, as the rules give them."""
    label = "W32A32" if method == "fp32" else "multi"
    widths = [label] if method == "fp32" else ["W3A3", "W8A8"]
    name = f"{backbone}/{method}/default/{label}/seed{seed}"
    bits = [tuple(map(int, width[1:].split("A"))) for width in widths]
    body = {
        "format": 1, "split": "test", "fp_top1": 92.0, "commit": "0123", "units": [],
        "results": [{"width": width, "w_bits": w, "a_bits": a, "top1": top1, "kl": 0.1, "correct": int(top1), "images": 100}
                    for width, (w, a) in zip(widths, bits, strict=True)],
        "run": {"backbone": backbone, "method": method, "variant": "default", "label": label, "seed": seed,
                "dataset": "digits", "calibration_images": 64, "groups": None if method == "fp32" else GROUPS},
        "protocol": {} if method == "fp32" else {"iterations": 5, "batch_size": 8},
        "cost": {"seconds": 10.0 + seed, "peak_mb": 3.0, "evaluation_seconds": 1.0} | cost,
        "sha256": {"weights": "ab", "data": {}},
        "environment": {"torch": "2", "device": "cpu", "threads": 1, "device_name": "a processor", "cores": 2},
    }  # fmt: skip
    if code:
        body["code_sha256"] = code
    path = folder / "records" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body))
    return f"{name}:{','.join(widths)}"


def collected(folder: Path, *names: str) -> pd.DataFrame:
    script("collect", "--root", folder, "--out", folder / "runs.csv", "--own", *names)
    return pd.read_csv(folder / "runs.csv", keep_default_na=False)


@pytest.fixture
def tables(tmp_path) -> Path:
    """The tables of three networks' runs."""
    names = [record(tmp_path, "fp32", 0, 92.0), record(tmp_path, "nearest_mse", 0, 80.1, backbone="toy_2")]
    names += [record(tmp_path, "ptmq", seed, 80.0 + seed, load_start=1.0, load_end=2.0) for seed in range(3)]
    collected(tmp_path, *names)
    script("tables", "--runs", tmp_path / "runs.csv", "--out", tmp_path / "tables")
    return tmp_path / "tables"


# ---------------------------------------------------------------- LaTeX
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
def test_latex_compiles(tables, name):
    compiles((tables / f"{name}.tex").read_text())


def test_every_published_table_compiles():
    published = sorted((ROOT / "results").rglob("tables/*.tex"))
    assert published
    for path in published:
        compiles(path.read_text())


def test_a_network_is_a_table_with_a_caption_and_a_label(tables):
    text = (tables / "accuracy.tex").read_text()
    assert text.count(r"\begin{table}") == 2
    assert r"\caption{accuracy, toy\_2}" in text and r"\label{tab:accuracy-toy-2}" in text


def test_wide_tables_are_scaled_to_the_text(tmp_path):
    narrow = pd.DataFrame({"backbone": ["toy"], "γ": ["50 %"], "text": ["at least ≥ 3 & more, 2×2"]})
    write(narrow, tmp_path / "narrow", by=None)
    compiles((tmp_path / "narrow.tex").read_text())
    assert r"\resizebox" not in (tmp_path / "narrow.tex").read_text()
    write(narrow.assign(**{f"column {i}": "1234567" for i in range(14)}), tmp_path / "wide", by=None)
    compiles((tmp_path / "wide.tex").read_text())
    assert r"\resizebox{\linewidth}" in (tmp_path / "wide.tex").read_text()


# ---------------------------------------------------------------- what stands where
def test_accuracy_has_the_widths_and_cost_what_was_given(tables):
    accuracy = pd.read_csv(tables / "accuracy.csv", keep_default_na=False)
    assert list(accuracy.columns) == ["backbone", "method", "variant", "W3A3", "W8A8", "W32A32"]
    cost = pd.read_csv(tables / "cost.csv", keep_default_na=False, dtype=str).set_index("method")
    assert cost.loc["ptmq", ["images", "s a calibration", "s for all widths", "load"]].tolist() == [
        "64", "11 ± 1", "11", "1.0 to 2.0"]  # fmt: skip
    assert cost.loc["nearest_mse", "load"] == ""


def test_markdown_has_a_row_a_line_and_no_padding(tables):
    lines = (tables / "accuracy.md").read_text().splitlines()
    assert lines[:2] == ["| backbone | method | variant | W3A3 | W8A8 | W32A32 |", "|---|---|---|---|---|---|"]
    assert lines[2] == "| toy | fp32 | default |  |  | 92.00 |"
    assert lines[3] == "| toy | ptmq | default | 81.00 ± 1.00 | 81.00 ± 1.00 |  |"


# ---------------------------------------------------------------- one code state
def test_rows_of_one_code_state_are_not_marked(tmp_path):
    found = collected(tmp_path, *[record(tmp_path, "ptmq", seed, 80.0, "aa") for seed in range(2)])
    assert set(found.code_sha256) == {"aa"} and set(found.mixed_code) == {""}


def test_rows_of_several_code_states_are_marked(tmp_path):
    names = [record(tmp_path, "ptmq", seed, 80.0, code) for seed, code in enumerate(["aa", "bb"])]
    found = collected(tmp_path, *names, record(tmp_path, "nearest_mse", 0, 80.0, "cc")).set_index("method")
    assert set(found.loc["ptmq", "mixed_code"]) == {"2 code states"}
    assert set(found.loc["nearest_mse", "mixed_code"]) == {""}, "another method's code is its own"
    script("tables", "--runs", tmp_path / "runs.csv", "--out", tmp_path / "tables")
    cost = pd.read_csv(tmp_path / "tables/cost.csv", keep_default_na=False).set_index("method")
    assert cost.loc["ptmq", "code"] == "2 code states"


@pytest.mark.parametrize("codes, said", [([None, None], "code not recorded"), (["aa", None], "some not recorded")])
def test_older_records_say_that_they_do_not_say(tmp_path, codes, said):
    found = collected(tmp_path, *[record(tmp_path, "ptmq", seed, 80.0, code) for seed, code in enumerate(codes)])
    assert set(found.mixed_code) == {said}


# ---------------------------------------------------------------- what the evaluation kept
def test_kept_answers_are_named_from_the_table(tmp_path):
    import hashlib

    name = record(tmp_path, "ptmq", 0, 80.0)
    kept = tmp_path / "records/toy/ptmq/default/multi/seed0.correct.safetensors"
    assert set(collected(tmp_path, name).correct_file) == {""}
    kept.write_bytes(b"bits")
    path = kept.with_name("seed0.json")
    body = json.loads(path.read_text())
    body["sha256"]["correct"] = hashlib.sha256(b"bits").hexdigest()
    path.write_text(json.dumps(body))
    (file,) = set(collected(tmp_path, name).correct_file)
    assert (tmp_path / file) == kept
    kept.write_bytes(b"other bits")
    command = [
        sys.executable,
        SCRIPTS / "collect.py",
        "--root",
        tmp_path,
        "--out",
        tmp_path / "runs.csv",
        "--own",
        name,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode and "is not the file that seed0.json was written with" in done.stderr


def test_images_processed_are_told(tmp_path):
    """Five iterations of eight images at a width of each of two groups; an epoch of all images."""
    names = [record(tmp_path, "ptmq", 0, 80.0), record(tmp_path, "multiquant", 0, 80.0, epochs=3, images=100)]
    found = collected(tmp_path, *names).set_index("method").images_processed
    assert set(found["ptmq"]) == {5 * 8 * 2} and set(found["multiquant"]) == {300}
