"""What all figures share: colours, markers and names of the methods, and the three formats."""

from functools import cache
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ptmq.common.provenance import declared

# Of methods that declare none: colours and markers that no other has (Okabe and Ito's tell the declared ones apart, and
# with marker and line figures also read in grey).
SPARE = [("#882255", "8"), ("#44AA99", ">"), ("#332288", "H"), ("#DDCC77", "*"), ("#AA4499", "1"), ("#117733", "2")]


@cache
def style_of(method: str) -> tuple[str, str, str, Any]:
    """Label, colour, marker and line of a method, as its own file declares them."""
    label, colour, marker, line = declared(method, "style", ()) or (
        method,
        *SPARE[sum(map(ord, method)) % len(SPARE)],
        (0, (3, 1)),
    )
    return label, colour, marker, line


def label_of(method: str, variant: str = "default") -> str:
    """Legend entry of one method."""
    name = style_of(method)[0]
    told = variant.removeprefix("default").removeprefix("+").replace("_", " ")
    return f"{name} ({told})" if told else name


def save(figure, path: Path, note: str = "") -> None:
    """Write a figure, with a note above it, as PDF, SVG and PNG; the same figure gives the same files."""
    if note:
        figure.suptitle(note.capitalize())
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "ptmq"
    for extension, metadata in (("pdf", {"CreationDate": None}), ("svg", {"Date": None}), ("png", {})):
        figure.savefig(path.with_suffix(f".{extension}"), dpi=150, metadata=metadata)
    plt.close(figure)
