"""Differences with their 95 % intervals, drawn as a forest: a row a comparison, a colour and a marker a width."""

import math
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from intervals import Estimate

WIDTHS = 3  # that are compared, lowest first
COLOURS = ("#0072B2", "#E69F00", "#009E73")
MARKERS = ("o", "s", "^")
APART = 0.22  # of the widths in a row


def point(axes, found: Estimate, row: float, number: int, edge: float = -math.inf) -> None:
    """The difference at one width, the `number`-th, in a row: hollow and without an interval where it is of one seed.

    What lies below `edge` is drawn there, with its value.
    """
    known = math.isfinite(found.half())
    place = row + APART * (number - 1)
    style = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 5, "linestyle": "none"}
    style |= {} if known else {"markerfacecolor": "white"}
    if found.mean < edge:
        axes.plot([edge], [place], **style | {"marker": "<"})
        axes.annotate(f"{found.mean:.0f}", (edge, place), (4, -3), textcoords="offset points", fontsize=6)
    else:
        axes.errorbar([found.mean], [place], xerr=found.half() if known else None, capsize=2, **style)


def names(axes, networks: Iterable[Sequence[str]]) -> None:
    """The legend of all panels: the width or widths of each colour. networks: the widths of each, lowest first."""
    for number, widths in enumerate(zip_longest(*(widths[:WIDTHS] for widths in networks))):
        label = ", ".join(dict.fromkeys(filter(None, widths)))
        axes.plot([], [], color=COLOURS[number], marker=MARKERS[number], linestyle="none", label=label)
