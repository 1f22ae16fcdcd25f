"""Mixed-precision records -> the frontier, top-1 against bits, size and operations; and what a switch costs.

    frontier.py --out results/cifar10 --records results/cifar10/mixed/resnet20/ptmq/default/multi/seed0.json ...

The mean over seeds with its standard deviation; written to tables/frontier.*, figures/frontier.* and
tables/switching.*.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from style import save
from tables import mean_sd, note_of, records_and_folder, write

KINDS = {"uniform": ("#56B4E9", "o", "--"), "mixed": ("#D55E00", "s", "-")}
COLUMNS = {
    "average_bits": "average weight bits",
    "kib": "packed weights [KiB]",
    "gbitops": "bit operations an image [10⁹]",
}


def points(records: list[dict]) -> pd.DataFrame:
    """One row a record and point."""
    rows = []
    for record in records:
        shared = {"backbone": record["run"]["backbone"], "seed": record["run"]["seed"], "fp_top1": record["fp_top1"]}
        for point in record["points"]:
            rows.append(shared | point | {"split": record["split"], "gbitops": point["bit_operations"] / 1e9})
    return pd.DataFrame(rows)


def switching(records: list[dict]) -> pd.DataFrame:
    """What switching the whole network costs, beside re-estimating BatchNorm: means over the seeds."""
    rows = pd.DataFrame([{"backbone": record["run"]["backbone"], **record["switching"]} for record in records])
    means = rows.groupby("backbone").mean()
    table = pd.DataFrame({
        "ms a switch": means.switch_ms.map("{:.3f}".format),
        "images a switch": means.switch_images.astype(int),
        "MiB of prepared weights": means.prepared_mib.map("{:.1f}".format),
        "s of AdaptiveBN": (means.adaptive_bn_ms / 1000).map("{:.1f}".format),
        "images of AdaptiveBN": means.adaptive_bn_images.astype(int),
        "seeds": rows.groupby("backbone").size(),
    })  # fmt: skip
    return table.reset_index()


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds, a row a backbone, kind and budget."""
    keys = ["backbone", "kind", "budget"]
    means = table.groupby(keys).agg(
        average_bits=("average_bits", "mean"), kib=("kib", "mean"), gbitops=("gbitops", "mean"),
        kl=("kl", "mean"), seeds=("seed", "nunique"),
        top1=("top1", "mean"), sd=("top1", "std"), cell=("top1", mean_sd),
    )  # fmt: skip
    return means.reset_index().sort_values(["backbone", "kind", "average_bits"], ascending=[True, False, True])


def as_text(means: pd.DataFrame) -> pd.DataFrame:
    """The summary with rounded numbers."""
    return means.assign(
        average_bits=means.average_bits.map("{:.2f}".format),
        kib=means.kib.map("{:.1f}".format),
        gbitops=means.gbitops.map("{:.2f}".format),
        kl=means.kl.map("{:#.4g}".format),
        top1=means.cell,
    ).drop(columns=["sd", "cell"])


def draw(axes, means: pd.DataFrame, column: str, fp: float) -> None:
    """One panel: both kinds against bits, size or operations, FP as a horizontal line."""
    for kind, (colour, marker, line) in KINDS.items():
        part = means[means.kind == kind].sort_values(column)
        label = "every block at one width" if kind == "uniform" else "a width for every block"
        axes.plot(part[column], part.top1, color=colour, marker=marker, linestyle=line, label=label)
        spread = part.sd.fillna(0)
        axes.fill_between(part[column], part.top1 - spread, part.top1 + spread, color=colour, alpha=0.2, linewidth=0)
    axes.axhline(fp, color="black", linewidth=1, linestyle="-.", label=f"FP32 ({fp:.2f} %)")
    axes.set_xlabel(COLUMNS[column])
    axes.set_ylabel("top-1 [%]")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower right")


def main(argv: Sequence[str] | None = None) -> None:
    records, out = records_and_folder(__doc__, argv)
    table = points(records)
    means = summary(table)
    (out / "tables").mkdir(parents=True, exist_ok=True)
    note = note_of(record["run"].get("dataset") for record in records)
    write(as_text(means), out / "tables" / "frontier", note=note)
    write(switching(records), out / "tables" / "switching", by=None, note=note)
    backbones = sorted(means.backbone.unique())
    figure, panels = plt.subplots(
        len(backbones),
        len(COLUMNS),
        figsize=(6 * len(COLUMNS), 4.2 * len(backbones)),
        squeeze=False,
        layout="constrained",
    )
    for row, backbone in zip(panels, backbones, strict=True):
        mine = table[table.backbone == backbone]
        for axes, column in zip(row, COLUMNS, strict=True):
            draw(axes, means[means.backbone == backbone], column, mine.fp_top1.iloc[0])
            axes.set_title(f"{backbone}, {int(mine.images.iloc[0]):,} {mine.split.iloc[0]} images")
    save(figure, out / "figures" / "frontier", note)


if __name__ == "__main__":
    main()
