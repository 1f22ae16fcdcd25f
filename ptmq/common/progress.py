"""A progress bar with the loss and the time left, for a terminal and for a log file."""

import math
import sys

from tqdm import tqdm


class Bar:
    """Progress over all iterations of a reconstruction, or all epochs of a training; without a title none is shown."""

    def __init__(self, title: str, total: int, unit: str = "iteration"):
        interactive = sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            desc=title,
            unit=f" {unit}",
            disable=total == 0 or not title,
            mininterval=0.2 if interactive else 15.0,
        )

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def advance(self, unit: str, count: int, loss: float) -> None:
        """`count` more are done, in `unit`, with `loss` the last (NaN where there is none yet)."""
        self.bar.set_postfix_str(unit if math.isnan(loss) else f"{unit} loss {loss:.4g}", refresh=False)
        self.bar.update(count)
