"""Records of the benchmark -> its tables and its figure.

    bench.py --out results/bench --records results/bench/records/1/resnet20-stage1.json ...

tables: iterations.* (ratios to the plain passes), operators.* (where the time of a PTMQ iteration goes), depth.*
(seconds of a whole calibration), calibrations.* (hours at the published iterations), switching.*, processes.*, onnx.*
(size and speed of exported files) · figures: bench.*
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from style import save
from tables import VNNI, records_and_folder, write

GOALS = {"convolution": 1.3, "transformer": 1.5}  # of a PTMQ iteration, in its three plain passes
LARGEST = 6  # operators that are named
COLOURS = ("#999999", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#E69F00", "#7570B3")
HATCHES = ("", "//", "..", "xx", "\\\\", "--", "++")  # so that they differ in grey
METHODS = {"ptmq": "PTMQ", "ptmq_compiled": "PTMQ, compiled", "qdrop": "QDrop", "qdrop_compiled": "QDrop, compiled"}


def setting(record: dict) -> str:
    """Device and threads of a record."""
    threads = record["environment"]["threads"]
    device = record["environment"]["device"]
    return device if device == "cuda" else f"{threads} thread{'s' if threads > 1 else ''}"


def iterations(records: list[dict]) -> pd.DataFrame:
    """A row a block and setting: medians of the plain passes, ratios of the iterations to them."""
    rows = []
    for record in records:
        ratios = {f"{name} iteration": f"{record['ratio'][key]:.2f}" for key, name in METHODS.items()}
        rows.append({
            "block": record["case"], "batch": "×".join(map(str, record["input"])), "on": setting(record),
            "one plain pass [ms]": f"{record['ms']['fp_1']:.1f}", **ratios,
            "s to compile": f"{record['compile_seconds']:.0f}", "peak MiB of the benchmark": f"{record['peak_mb']:.0f}",
        })  # fmt: skip
    return pd.DataFrame(rows)


def operators(records: list[dict]) -> pd.DataFrame:
    """A row a block: the share of a PTMQ iteration that each of the largest operators takes, in percent."""
    shares = pd.DataFrame({record["case"]: record["operators"] for record in records}).T.fillna(0)
    largest = list(shares.mean().sort_values(ascending=False).index[:LARGEST])
    table = 100 * shares[largest]
    table["all others"] = 100 - table.sum(axis=1)
    return table.rename(columns=lambda name: name.removeprefix("aten::"))


def depth(record: dict) -> pd.DataFrame:
    """A row a depth: seconds, and those of the straight line through all of them."""
    layers = np.array(list(map(int, record["seconds"])))
    seconds = np.array(list(record["seconds"].values()))
    line = np.polyval(np.polyfit(layers, seconds, 1), layers)
    return pd.DataFrame({"layers": layers, "seconds": seconds, "straight line": line})


def calibrations(records: list[dict]) -> pd.DataFrame:
    """A row a network: what a calibration at the published iterations takes, worked out from two short ones."""
    return pd.DataFrame([{
        "network": record["backbone"], "on": setting(record), "images": record["images"],
        "s an iteration of all blocks": f"{record['seconds_an_iteration']:.3g}",
        "s besides": f"{record['seconds_besides']:.0f}", "iterations": f"{record['iterations']:,}",
        "hours for them": f"{record['hours']:.1f}", "peak MiB": f"{record['peak_mb']:.0f}",
    } for record in records])  # fmt: skip


def onnx(records: list[dict]) -> pd.DataFrame:
    """A row a network and number of images: size of the files, how many times as fast as FP32 each width is."""
    rows = []
    for record in records:
        size = {name: count / 2**20 for name, count in record["size"].items()}  # MiB
        for count, times in record["latency"].items():
            fp32 = times["fp32"]["median"]
            faster = {name: f"{fp32 / taken['median']:.2f}" for name, taken in times.items() if name != "fp32"}
            rows.append({
                "network": record["backbone"], "pixels": "×".join(map(str, record["input"])),
                "FP32 file [MiB]": f"{size['fp32_bytes']:.2f}", "file of all widths [MiB]": f"{size['bytes']:.2f}",
                "share": f"{size['bytes'] / size['fp32_bytes']:.2f}", "in floating point": len(record["floats"]),
                "batch": count, "FP32 [ms]": f"{fp32:.2f}", **faster, "VNNI": VNNI[record["vnni"]],
            })  # fmt: skip
    return pd.DataFrame(rows)


def draw(blocks: list[dict], shares: pd.DataFrame, line: pd.DataFrame) -> plt.Figure:
    """Ratios of the PTMQ iterations, shares of operators, seconds against depth."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(17, 5), layout="constrained")
    settings = sorted({setting(record) for record in blocks})
    names = list(shares.index)
    for number, (on, key) in enumerate((on, key) for on in settings for key in ("ptmq", "ptmq_compiled")):
        heights = [r["ratio"][key] for name in names for r in blocks if r["case"] == name and setting(r) == on]
        at = np.arange(len(names)) + 0.2 * (number - len(settings) + 0.5)
        colour, hatch = ("#0072B2", "#D55E00", "#009E73")[number // 2], "//" if number % 2 else ""
        left.bar(at, heights, 0.2, color=colour, alpha=0.75, hatch=hatch, label=f"{METHODS[key]}, {on}")
    left.set_xticks(range(len(names)), names, rotation=30, ha="right")
    left.axhline(1, color="black", linewidth=1)
    for (kind, goal), style in zip(GOALS.items(), ("--", ":"), strict=True):
        left.axhline(goal, color="black", linewidth=1, linestyle=style, label=f"goal, {kind} blocks")
    left.set_ylabel("PTMQ iteration / its three plain passes")
    left.margins(y=0.3)  # for the legend
    left.legend(fontsize="small", loc="upper left", ncols=2)
    below = np.zeros(len(shares))
    for name, colour, hatch in zip(shares, COLOURS, HATCHES, strict=False):
        middle.barh(names, shares[name], left=below, color=colour, hatch=hatch, edgecolor="white", label=name)
        below += shares[name].to_numpy()
    middle.invert_yaxis()
    middle.set_xlabel(f"share of a PTMQ iteration [%], {settings[0]}, not compiled")
    middle.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    right.plot(line.layers, line.seconds, "o", color="#D55E00", label="measured")
    right.plot(line.layers, line["straight line"], "--", color="black", label="straight line")
    right.set_xlabel("layers of a CIFAR ResNet")
    right.set_ylabel("seconds of a short calibration")
    right.set_ylim(bottom=0)
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    records, out = records_and_folder(__doc__, argv)
    records.sort(key=lambda record: (record["case"], record["environment"]["threads"]))
    tables = out / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    blocks = [record for record in records if "ratio" in record]
    (deep,), (switching,), (processes,) = (
        [record for record in records if record["case"] == case] for case in ("depth", "switching", "processes")
    )
    write(iterations(blocks), tables / "iterations", by=None)
    shares = operators([record for record in blocks if setting(record) == setting(blocks[0])])
    write(shares.round(1).rename_axis("block").reset_index(), tables / "operators", by=None)
    line = depth(deep)
    write(line.round(1), tables / "depth", by=None)
    write(calibrations([record for record in records if "hours" in record]), tables / "calibrations", by=None)
    write(pd.DataFrame([{
        "ms a switch, prepared": f"{switching['prepared_ms']:.3f}",
        "ms a switch, not prepared": f"{switching['unprepared_ms']:.1f}",
        "MiB of prepared weights": f"{switching['prepared_mib']:.1f}",
        "MiB of FP weights": f"{switching['fp_mib']:.1f}",
    }]), tables / "switching", by=None)  # fmt: skip
    rates = pd.DataFrame(
        processes.get("iterations_a_second") or processes["steps_a_second"]
    ).T  # its name in older records
    table = pd.DataFrame({
        "block": rates.index, "one process, two threads [iterations/s]": rates["1x2"].map("{:.2f}".format),
        "two processes, one thread each [iterations/s]": rates["2x1"].map("{:.2f}".format),
        "gain of two processes": ((rates["2x1"] / rates["1x2"] - 1) * 100).map("{:+.0f} %".format),
    })  # fmt: skip
    write(table, tables / "processes", by=None)
    write(onnx([record for record in records if "latency" in record]), tables / "onnx", by=None)
    save(draw(blocks, shares, line), out / "figures" / "bench")


if __name__ == "__main__":
    main()
