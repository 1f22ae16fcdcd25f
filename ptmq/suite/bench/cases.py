"""The cases by name, and the record of one: each is measured in one process."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ptmq.common import provenance
from ptmq.common.errors import one_of
from ptmq.suite import run_record
from ptmq.suite.bench.blocks import BLOCKS, block, processes
from ptmq.suite.bench.calibrations import WHOLE, depth, whole
from ptmq.suite.bench.models import EXPORTED, exported, switching

NUMBERS = (
    *("seconds_an_iteration", "seconds_besides", "hours", "compile_seconds"),
    *("prepared_ms", "unprepared_ms", "prepared_mib", "peak_mb"),
)
CASES: dict[str, Callable[[str, int, torch.device], dict[str, Any]]] = {
    **dict.fromkeys(BLOCKS, block),
    "depth": depth,
    **{f"calibration-{name}": whole for name in WHOLE},
    "switching": switching,
    "processes": processes,
    **{f"onnx-{name}": exported for name in EXPORTED},
}


def measure(case: str, repeats: int, device: torch.device) -> dict[str, Any]:
    """The record of one case."""
    one_of("--case", case, CASES)
    if case == "processes" or case.startswith("onnx"):
        device = torch.device("cpu")
    result = CASES[case](case, repeats, device)
    return {
        "format": run_record.FORMAT,
        "case": case,
        **result,
        "peak_mb": run_record.peak_mb(device),
        "environment": run_record.environment(device),
        "code_sha256": provenance.code_sha256("ptmq.suite.bench.cases"),
        "commit": provenance.commit(),
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """What a person reads of a record."""
    for key in ("ms", "ratio", "seconds", "iterations_a_second"):
        for name, value in result.get(key, {}).items():
            yield f"{key.replace('_', ' '):16} {name!s:28} {value if isinstance(value, dict) else f'{value:.2f}'}"
    for count, times in result.get("latency", {}).items():
        for name, taken in times.items():
            yield f"{f'ms, batch {count}':16} {name:28} {taken['median']:.2f}"
    for name, count in result.get("size", {}).items():
        yield f"{'size':16} {name:28} {count:,}"
    for key in NUMBERS:
        if key in result:
            yield f"{key.replace('_', ' '):16} {result[key]:.3f}"
