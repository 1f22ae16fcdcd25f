"""Figures show the numbers of the tables, each where it belongs; the same data gives the same files."""

import json
from itertools import combinations

import forest
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import style
from matplotlib.colors import to_rgb

from ptmq.methods.interface import discover
from tests.records import BOTH, drawn, figures, frontier_record, on_dataset, record, script


def panels(results, name: str, *options: str) -> dict:
    """The panels of a figure over runs.csv, by title: their lines."""
    results.collect(*options)
    with figures(name) as found:
        script(name, "--runs", results.root / "runs.csv", "--out", results.root)
    (figure,) = found.values()
    return {axes.get_title(): axes for axes in figure.axes}


def below_fp(axes, label: str) -> tuple[list, list]:
    """Where a method's line is, in points below FP32, widths that were not run left out."""
    x, y = drawn(axes)[label]
    return zip(*[(at, round(points, 6)) for at, points in zip(x, y, strict=True) if points == points], strict=True)


def test_accuracy_draws_how_far_every_method_is_below_fp_at_every_width(results):
    found = panels(results, "accuracy")
    assert set(found) == {"toy: one calibration for all widths", "toy: one calibration a width"}
    for (title, axes), label, points in zip(found.items(), ("PTMQ", "QDrop"), ((11.0, 1.0), (10.0, 0.5)), strict=True):
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["W3A3", "W8A8"], title
        assert list(below_fp(axes, label)) == [(0, 1), points]
        bottom, top = axes.get_ylim()
        assert bottom > 11 and top < 0, "less is better, and stands higher"


def test_a_line_of_accuracy_breaks_where_a_width_was_not_run(results):
    results.add(record("ptmq", {"W5A5": 90.0}, seed=2))
    axes = panels(results, "accuracy")["toy: one calibration a width"]
    assert [points == points for points in drawn(axes)["QDrop"][1]] == [True, False, True]


def test_one_seed_is_hollow(results):
    found = panels(results, "accuracy")
    filled = {label: line.get_markerfacecolor() for axes in found.values() for line in axes.get_lines()
              if not (label := line.get_label()).startswith("_")}  # fmt: skip
    assert filled["QDrop"] == "white" and filled["PTMQ"] != "white", "one seed and two"


def test_widths_beside_the_groups_have_a_row_of_their_own_where_there_are_several(results):
    def shown() -> list:
        results.collect()
        with figures("accuracy") as found:
            script("accuracy", "--runs", results.root / "runs.csv", "--out", results.root)
        return [axes for axes in found["accuracy"].axes if axes.axison]

    results.add(record("qdrop", {"W3A32": 90.0}, label="W3A32"))
    assert len(shown()) == 2, "one width alone compares with nothing beside it"
    results.add(record("qdrop", {"W4A32": 91.0}, label="W4A32"))
    *_, beside = panels = shown()
    assert len(panels) == 3 and [label.get_text() for label in beside.get_xticklabels()] == ["W3A32", "W4A32"]
    assert list(below_fp(beside, "QDrop")) == [(0, 1), (2.0, 1.0)] and "PTMQ" not in drawn(beside)


def test_the_headline_has_the_difference_to_qdrop_and_the_costs_beside(results):
    found = panels(results, "headline")
    compared, bits, seconds = (found[title] for title in (
        "toy: minus QDrop [points]", "stored bits a weight", "CPU-seconds, over QDrop's"))  # fmt: skip
    assert [label.get_text() for label in compared.get_yticklabels()] == ["PTMQ"], "QDrop is the line at 0"
    at = [tuple(float(x) for x in line.get_xdata()) for line in compared.get_lines() if len(line.get_xdata())]
    assert (-2.0,) in at and (-0.5,) in at, "W3A3 and W8A8, of the seed that both have"
    assert list(bits.get_lines()[-1].get_xdata()) == [11.5, 11.5], "QDrop stores a model of each width"
    assert list(seconds.get_lines()[0].get_xdata()) == [0.5], "one calibration against two"
    (row,) = pd.read_csv(results.root / "tables/headline.csv", dtype=str).to_dict("records")
    assert (row["method"], row["W3A3"], row["paired by"], row["CPU-s over QDrop's"]) == (
        "ptmq",
        "-2.00",
        "seed",
        "0.50",
    )


def test_cost_draws_one_calibration_and_all_that_are_needed(results):
    found = panels(results, "cost")
    assert set(found) == {"toy, W3A3", "toy, W8A8"}
    lines = drawn(found["toy, W3A3"])
    assert lines["QDrop"] == ([20.0], [82.0]) and lines["PTMQ"] == ([10.0], [81.0])
    hollow = [line for line in found["toy, W3A3"].get_lines() if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in hollow] == [[10.0]], "one calibration of QDrop"


def test_what_learns_nothing_and_lies_far_below_stands_on_the_edge_with_its_value(results):
    results.add(record("nearest_mse", {"W3A3": 20.0, "W8A8": 30.0}, protocol={"iterations": 0}))
    for axes, value in zip(panels(results, "cost").values(), ("20.0", "30.0"), strict=True):
        (y,), bottom = drawn(axes)["nearest, MSE step sizes"][1], axes.get_ylim()[0]
        assert float(value) < bottom < y < min(drawn(axes)["PTMQ"][1])
        assert [(text.get_text(), text.xy[1]) for text in axes.texts] == [(value, y)]


def test_what_learns_is_on_the_axis_however_far_below(results):
    results.add(record("flexround", {"W3A3": 20.0, "W8A8": 30.0}))
    for axes, value in zip(panels(results, "cost").values(), (20.0, 30.0), strict=True):
        assert list(drawn(axes)["FlexRound"][1]) == [value] and axes.get_ylim()[0] < value and not axes.texts


def test_blocks_draw_the_error_of_every_block_over_qdrops_and_the_rounding_before_and_after(results):
    paths = []
    for method, errors in (("ptmq", (0.1, 0.3)), ("qdrop", (0.2, 0.2))):
        body = record(method, BOTH, seed=2)
        body["units"] = [
            {"unit": name, "iterations": 5, "loss": [], "error_before": {"W3A3": 1.0}, "error_after": {"W3A3": after},
             "h_before": [5, 5], "h_after": [9, 1]}
            for name, after in zip(("stem", "layer1.0"), errors, strict=True)
        ]  # fmt: skip
        paths.append(results.add(body))
    with figures("blocks") as found:
        script("blocks", "--out", results.root, "--records", *paths)
    axes = found["blocks"].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["stem", "layer1.0"]
    lines = {label: y for label, (_, y) in drawn(axes).items()}
    assert lines["PTMQ"] == pytest.approx([0.5, 1.5]) and lines["QDrop"] == pytest.approx([1.0, 1.0])
    shares = {patch.get_label(): list(patch.get_data().values) for patch in found["rounding"].axes[0].patches}
    assert shares == {"before learning": [50.0, 50.0], "after learning": [90.0, 10.0]}


def test_nothing_but_the_ceiling_is_drawn_where_nothing_else_was_run(results):
    for label, method, seed in (("multi", "ptmq", 0), ("multi", "ptmq", 1), ("W3A3", "qdrop", 0), ("W8A8", "qdrop", 0)):
        results.path(method, seed, label).unlink()
    assert panels(results, "accuracy", "--partial") == {}


# ---------------------------------------------------------------- frontier and ablations
@pytest.fixture
def frontier(results, tmp_path):
    """The folder that frontier.py wrote, and its figure."""
    paths = [tmp_path / f"{seed}.json" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        path.write_text(json.dumps(frontier_record(seed)))
    with figures("frontier") as found:
        script("frontier", "--out", results.root, "--records", *paths)
    return results.root, found["frontier"]


def test_the_frontier_has_uniform_widths_first_each_by_its_bits(frontier):
    table = pd.read_csv(frontier[0] / "tables/frontier.csv", dtype=str).set_index("budget")
    assert list(table.index) == ["W3A3", "W8A8", "3.50", "5.50"]
    assert table.loc["3.50", ["kind", "average_bits", "kib", "seeds", "top1"]].tolist() == [
        "mixed", "3.50", "35.0", "2", "85.50 ± 0.71"]  # fmt: skip
    switching = pd.read_csv(frontier[0] / "tables/switching.csv").set_index("backbone")
    assert switching.loc["toy", ["ms a switch", "images a switch", "s of AdaptiveBN", "seeds"]].tolist() == [
        0.1, 0, 1.5, 2]  # fmt: skip


def test_the_frontier_is_drawn_against_bits_size_and_operations(frontier):
    bits, kib, operations = map(drawn, frontier[1].axes)
    for panel, scale in ((bits, 1), (kib, 10), (operations, 1)):
        assert panel["a width for every block"] == ([3.5 * scale, 5.5 * scale], [85.5, 91.0])
        assert panel["every block at one width"] == ([3.0 * scale, 8.0 * scale], [80.5, 91.5])


def test_an_ablation_compares_variants_with_the_default_seed_by_seed(results):
    for seed in (0, 1):
        body = record("ptmq", {"W3A3": 78.0 + 3 * seed, "W8A8": 91.5}, seed)
        body["run"]["variant"] = "gd_none"
        body["units"][0]["h_after"] = [40, 40]
        results.add(body)
    records = sorted((results.root / "records/toy/ptmq").rglob("*.json"))
    with figures("ablation") as found:
        script("ablation", "--root", results.root, "--name", "gd", "--records", *records,
               "--missing", "toy/ptmq/gd_later/multi/seed0")  # fmt: skip
    table = pd.read_csv(results.root / "tables/ablation_gd.csv", dtype=str, keep_default_na=False).set_index("variant")
    assert list(table.index) == ["default", "gd_none", "gd_later"] and table.loc["gd_later", "seeds"] == "not run"
    # 78 - 80 and 81 - 82: the mean is -1.5
    assert table.loc["gd_none", "change W3A3"].startswith("-1.50 ± ") and table.loc["default", "change W3A3"] == ""
    assert table.loc["gd_none", "R [KiB]"] == "0.01", "80 values of one bit"
    (axes,) = found["ablation_gd"].axes
    points = [list(line.get_xdata()) for line in axes.get_lines() if line.get_marker() in ("o", "s", "^")]
    assert [-1.5] in points and [0.5] in points, "W3A3 and W8A8"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["gd_none (n = 2)"]


def test_an_ablation_draws_a_network_that_has_the_floor_alone(results):
    floor = results.add(record("nearest_mse", {"W3A3": 70.0, "W8A6": 91.0}, run={"backbone": "toy_2"}))
    records = sorted((results.root / "records/toy/ptmq").rglob("*.json"))
    with figures("ablation") as found:
        script("ablation", "--root", results.root, "--name", "gd", "--records", *records, floor)
    assert [axes.get_title().split(",")[0] for axes in found["ablation_gd"].axes] == ["toy", "toy_2"]
    (legend,) = found["ablation_gd"].legends
    assert [text.get_text() for text in legend.get_texts()] == ["W3A3", "W8A8, W8A6"], "toy_2 has a width of its own"


# ---------------------------------------------------------------- files and style
def test_the_same_data_gives_the_same_files(results):
    results.collect()
    made = []
    for folder in ("one", "two"):
        script("accuracy", "--runs", results.root / "runs.csv", "--out", results.root / folder)
        made.append({path.name: path.read_bytes() for path in (results.root / folder).iterdir()})
    assert made[0] == made[1] and set(made[0]) == {f"accuracy.{extension}" for extension in ("pdf", "svg", "png")}
    assert not plt.get_fignums(), "no figure is left open"


@pytest.mark.parametrize("name", ["accuracy", "cost"])
def test_figures_of_images_that_nobody_else_has_say_so(results, name):
    notes = []
    for dataset in ("digits", "imagenet_subset"):
        (axes, *_) = panels(on_dataset(results, dataset), name).values()
        notes.append(axes.figure.get_label())
    assert notes[0] == "" and notes[1].startswith("not reproducible by others")


def test_a_note_stands_above_the_figure(tmp_path):
    figure = plt.figure()
    style.save(figure, tmp_path / "noted", "not reproducible")
    assert figure.get_suptitle() == "Not reproducible"


def test_no_two_methods_look_alike():
    names = sorted(discover())
    styles = {name: style.style_of(name) for name in names}
    assert len({(colour, marker) for _, colour, marker, _ in styles.values()}) == len(names)
    assert style.style_of("unheard_of")[0] == "unheard_of"
    assert style.label_of("ptmq", "gd_none") == "PTMQ (gd none)" and style.label_of("ptmq") == "PTMQ"


# What is seen of linear red, green and blue (Machado, Oliveira and Fernandes, IEEE TVCG 2009, severity 1), and in grey.
SEEN_BY = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "grey": [[0.2126, 0.7152, 0.0722]] * 3,
}


@pytest.mark.parametrize("eyes", SEEN_BY)
def test_methods_of_one_marker_are_told_apart_by_everybody(eyes):
    def lightness(colour: str) -> np.ndarray:
        linear = np.array(SEEN_BY[eyes]) @ np.array(to_rgb(colour)) ** 2.2
        return np.clip(linear, 0, 1) ** (1 / 2.2)

    styles = [style.style_of(name)[1:3] for name in sorted(discover())]
    alike = [(one, other) for (one, marker), (other, same) in combinations(styles, 2) if marker == same and one != other
             and np.abs(lightness(one) - lightness(other)).max() < 0.1]  # fmt: skip
    assert not alike and len(set(forest.MARKERS)) == len(forest.MARKERS), "widths have a marker each"
