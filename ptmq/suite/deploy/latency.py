"""How long calls take, measured side by side."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

WARM_UP = 3  # calls of each case that are not timed
FEWEST = 5  # calls of each case where time is short


def interleaved(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a call of every case: median, and the quartiles around it.

    Round by round, each case once: what else the machine does hits all of them alike.
    """
    return spreads(cases, in_turn(list(cases.values()), repeats))


def in_turn(
    calls: Sequence[Callable[[], object]],
    repeats: int,
    settled: Callable[[], object] = lambda: None,
    budget: float = math.inf,
) -> list[list[float]]:
    """Seconds of each call, round by round: `repeats` of each, or at least FEWEST in `budget` seconds.

    settled: waits until what a call began is done.
    """
    times: list[list[float]] = [[] for _ in calls]
    begin = time.perf_counter()
    for number in range(WARM_UP + repeats):
        if number >= WARM_UP + FEWEST and time.perf_counter() - begin > budget:
            break
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            settled()
            if number >= WARM_UP:
                taken.append(time.perf_counter() - start)
    return times


def spreads(names: Iterable[str], times: Sequence[list[float]]) -> dict[str, dict[str, float]]:
    """Milliseconds of each name's calls: median and quartiles. times: seconds, as `in_turn` gives them."""
    return {name: spread([1000 * second for second in taken]) for name, taken in zip(names, times, strict=True)}


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def switching(calls: Sequence[Callable], x: np.ndarray, repeats: int) -> dict[str, float]:
    """Milliseconds of a call behind one at the same width, behind one at another, and what that takes more."""

    def same(number: int) -> None:
        calls[number // 2 % len(calls)](x)

    def other(number: int) -> None:
        calls[number % len(calls)](x)

    numbers = iter(range(10**9))
    kept = interleaved({"first": lambda: same(next(numbers)), "second": lambda: same(next(numbers))}, repeats)["second"]
    numbers = iter(range(10**9))
    changed = interleaved({"call": lambda: other(next(numbers))}, 2 * repeats)["call"]
    same_ms, other_ms = kept["median"], changed["median"]
    return {"same": same_ms, "other": other_ms, "extra": round(max(0.0, other_ms - same_ms), 4)}


def has_vnni() -> bool | None:
    """Whether the processor multiplies bytes in one instruction; None where the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    return "avx512_vnni" in text or "avx_vnni" in text
