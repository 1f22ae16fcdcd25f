"""The charts of the site: what Plotly draws, as the data that its JavaScript reads. Nothing is drawn here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from style import label_of, style_of
from tables import KEYS, ordered, processor_seconds, widths_of

MANY = 12  # lines, above which variants are shown when they are asked for
LAYOUT = {
    "template": None,
    "margin": {"l": 55, "r": 15, "t": 15, "b": 90},
    "height": 460,
    "hovermode": "closest",
    "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
}


@dataclass(frozen=True)
class Chart:
    """A chart of a page. figure: the drawn one that stands for it where no script runs, by its file's name."""

    title: str
    figure: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


def axis(**more: Any) -> dict[str, Any]:
    """An axis with a light grid; the heading above a chart says what it shows."""
    return {"gridcolor": "#e5e5e5", "automargin": True, **more}


def charts_of(runs: pd.DataFrame) -> Iterator[Chart]:
    """Of every network: accuracy against width, against what is stored, and against CPU-seconds."""
    for backbone, group in runs.groupby("backbone", sort=False):
        quantized = group[(group.method != "fp32") & group.in_groups.astype(bool)]
        quantized = quantized.assign(cpu_seconds_all=processor_seconds(quantized, "_all"))
        if quantized.empty:
            continue
        yield against_width(str(backbone), quantized)
        for column, title, log in (
            ("bits_per_weight", "bits a weight, all widths together", False),
            ("cpu_seconds_all", "CPU-seconds for all widths; of older runs: seconds of the clock", True),
        ):
            known = quantized[quantized[column].notna() & (quantized[column] > 0)]
            if len(known):
                yield against_cost(str(backbone), known, column, title, log)


def against_width(backbone: str, runs: pd.DataFrame) -> Chart:
    """A line for each method, at the widths of the bit groups; the legend hides and shows them."""
    widths = widths_of(runs)
    keys = list(ordered(runs[KEYS].drop_duplicates()).itertuples(index=False, name=None))
    groups = dict(list(runs.groupby(KEYS)))
    ceiling = [float(runs.fp_top1.iloc[0])] * len(widths)
    data: list[dict[str, Any]] = [
        {"name": "FP32", "mode": "lines", "x": widths, "y": ceiling, "line": {"color": "#000000", "dash": "dot"}}
    ]
    for key in keys:
        points = (
            groups[key]
            .groupby(["w_bits", "a_bits", "width"], as_index=False)
            .agg(top1=("top1", "mean"), deviation=("top1", "std"), page=("page", "first"))
        )
        _, method, variant = key
        hidden = len(keys) > MANY and variant != "default"
        data.append({
            "name": label_of(method, variant), "mode": "lines+markers", "type": "scatter",
            "x": list(points.width), "y": [round(value, 3) for value in points.top1],
            "error_y": {"type": "data", "array": list(points.deviation.fillna(0).round(3)), "thickness": 1},
            "customdata": list(points.page), "visible": "legendonly" if hidden else True,
            **({} if variant != "default" else {"line": {"color": style_of(method)[1]}}),
        })  # fmt: skip
    lines = {"categoryorder": "array", "categoryarray": widths}
    layout = {**LAYOUT, "xaxis": axis(**lines), "yaxis": axis()}
    return Chart(f"{backbone}: top-1 [%] against width", "accuracy", data, layout)


def against_cost(backbone: str, runs: pd.DataFrame, column: str, title: str, log: bool) -> Chart:
    """A point for each method; the legend chooses the widths, of which the lowest is shown first."""
    data: list[dict[str, Any]] = []
    widths = runs.groupby(["w_bits", "a_bits", "width"])
    for (_, _, width), group in widths:
        points = group.groupby(KEYS, as_index=False).agg(
            x=(column, "mean"), top1=("top1", "mean"), page=("page", "first")
        )
        names = [label_of(row.method, row.variant) for row in points.itertuples()]
        data.append({
            "name": width, "type": "scatter", "mode": "markers" if len(names) > MANY else "markers+text",
            "x": [round(value, 3) for value in points.x], "y": [round(value, 3) for value in points.top1],
            "text": names, "textposition": "top center", "customdata": list(points.page), "cliponaxis": False,
            "marker": {"size": 9, "color": [style_of(method)[1] for method in points.method]},
            "visible": "legendonly" if data else True,
        })  # fmt: skip
    layout = {**LAYOUT, "xaxis": axis(type="log" if log else "linear"), "yaxis": axis(),
              "showlegend": True}  # fmt: skip
    return Chart(f"{backbone}: top-1 [%] against {title}", "cost" if log else "frontier", data, layout)


def losses(record: Mapping[str, Any]) -> Chart | None:
    """The loss curve of every block, or of training; None where nothing was learned."""
    curves = {unit["unit"]: unit["loss"] for unit in record.get("units", []) if unit.get("loss")}
    if record.get("training", {}).get("loss"):
        curves["training"] = record["training"]["loss"]
    if not curves:
        return None
    data = [{"name": name, "type": "scatter", "mode": "lines", "y": curve} for name, curve in curves.items()]
    layout = {**LAYOUT, "xaxis": axis(), "yaxis": axis(type="log")}
    return Chart("Loss against iterations, in equal parts", "", data, layout)
