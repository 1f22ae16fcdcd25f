"""How long calls take, measured side by side, and what a session takes of time and memory to open."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP = 3  # calls of each case that are not timed


def interleaved(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a call of every case: median, and the quartiles around it.

    Round by round, each case once: what else the machine does hits all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(WARM_UP + repeats):
        for name, call in cases.items():
            start = time.perf_counter()
            call()
            if number >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: spread(found) for name, found in times.items()}


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def switching(calls: Sequence[Callable], x: np.ndarray, repeats: int) -> dict[str, float]:
    """Milliseconds of a call behind one at the same width, and behind one at another, over all widths."""

    def same(number: int) -> None:
        calls[number // 2 % len(calls)](x)

    def other(number: int) -> None:
        calls[number % len(calls)](x)

    numbers = iter(range(10**9))
    kept = interleaved({"first": lambda: same(next(numbers)), "second": lambda: same(next(numbers))}, repeats)["second"]
    numbers = iter(range(10**9))
    changed = interleaved({"call": lambda: other(next(numbers))}, 2 * repeats)["call"]
    return {"same": kept["median"], "other": changed["median"]}


def opened(make: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What `make` gives, the milliseconds that it took, and the MiB by which the process has grown, where known."""
    before, start = resident_mib(), time.perf_counter()
    made = make()
    taken = {"ms": round(1000 * (time.perf_counter() - start), 2)}
    return made, taken if before is None else taken | {"mib": round((resident_mib() or 0) - before, 2)}


def resident_mib() -> float | None:
    """Memory that this process has, in MiB; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux
        return None
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmRSS")), None)


def has_vnni() -> bool | None:
    """Whether the processor multiplies bytes in one instruction; None where the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    return "avx512_vnni" in text or "avx_vnni" in text
