"""What all figures share: colours, markers and names of the methods, and the three formats."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Colour, marker and line tell the methods apart, so figures also read in grey (colours: Okabe and Ito).
STYLES = {
    "nearest_minmax": ("#999999", "v", ":"),
    "nearest_mse": ("#56B4E9", "^", "--"),
    "adaround": ("#009E73", "P", (0, (5, 1))),
    "brecq": ("#CC79A7", "D", (0, (3, 1, 1, 1))),
    "qdrop": ("#0072B2", "s", (0, (1, 1))),
    "flexround": ("#E69F00", "X", (0, (5, 1, 1, 1, 1, 1))),
    "adaptive_bn": ("#7570B3", "<", (0, (2, 2))),
    "robustquant": ("#66A61E", "p", (0, (4, 2, 1, 2))),
    "any_precision": ("#A6761D", "h", (0, (6, 2))),
    "multiquant": ("#1B7837", "d", (0, (2, 1, 1, 1))),
    "ptmq": ("#D55E00", "o", "-"),
}
OTHER = ("#000000", "*", "-")
NAMES = {
    "nearest_minmax": "nearest, min-max steps",
    "nearest_mse": "nearest, MSE steps",
    "adaround": "AdaRound",
    "brecq": "BRECQ",
    "qdrop": "QDrop",
    "flexround": "FlexRound",
    "adaptive_bn": "AdaptiveBN",
    "robustquant": "RobustQuant",
    "any_precision": "Any-Precision",
    "multiquant": "MultiQuant",
    "ptmq": "PTMQ",
}


def label_of(method: str, variant: str = "default") -> str:
    """Legend entry of one method."""
    name = NAMES.get(method, method)
    told = variant.removeprefix("default").removeprefix("+").replace("_", " ")
    return f"{name} ({told})" if told else name


def order(method: str) -> int:
    """Place of a method in a legend: the order of STYLES, then the others."""
    return list(STYLES).index(method) if method in STYLES else len(STYLES)


def save(figure, path: Path) -> None:
    """Write a figure as PDF, SVG and PNG; the same figure gives the same files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "ptmq"
    for extension, metadata in (("pdf", {"CreationDate": None}), ("svg", {"Date": None}), ("png", {})):
        figure.savefig(path.with_suffix(f".{extension}"), dpi=150, metadata=metadata)
    plt.close(figure)


def legend(axes, **options) -> None:
    """The legend, which says what lies below the part of the axis that is shown."""
    bottom, _ = axes.get_ylim()
    for line in axes.get_lines():
        if not line.get_label().startswith("_") and max(line.get_ydata()) < bottom:
            line.set_label(f"{line.get_label()} (below)")
    axes.legend(fontsize="small", **options)
