"""What it takes to open an ONNX file and to run it: time and memory of a process that does nothing else.

    python -m ptmq.suite.deploy.opening FILE THREADS BATCH

Prints one line of JSON. A process of its own, without torch: what a user's process takes is not hidden by what this
one has already.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def opening(file: Path, threads: int, batch: int) -> dict[str, float]:
    """Milliseconds to open a file; MiB that the open session holds; MiB at the peak of opening and running it.

    batch: images a call; every width runs once. Memory is left out where the system does not say.
    """
    command = [sys.executable, "-m", __name__, str(file), str(threads), str(batch)]
    folder = str(Path(__file__).parents[3])  # this checkout, whatever is installed
    path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": path})
    return json.loads(done.stdout)


def memory() -> dict[str, float]:
    """MiB of this process: resident now, and at its peak; empty where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux
        return {}
    found = dict(line.split(":", 1) for line in lines)
    return {name: int(found[key].split()[0]) / 2**10 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}


def inputs_of(session: Any, batch: int) -> list[dict[str, np.ndarray]]:
    """Zeros of the file's shape: one feed for every width."""
    kinds = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
    images, *rest = session.get_inputs()
    zeros = np.zeros([batch, *images.shape[1:]], dtype=kinds[images.type])
    if not rest:
        return [{images.name: zeros}]
    keys = json.loads(session.get_modelmeta().custom_metadata_map["ptmq.widths"])
    return [{images.name: zeros, rest[0].name: np.array(int(key))} for key in keys]


def main() -> None:
    import onnxruntime

    file, threads, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    before, start = memory(), time.perf_counter()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    found = {"ms": 1000 * (time.perf_counter() - start)}
    opened = memory()
    for feed in inputs_of(session, batch):
        session.run(None, feed)
    if before:
        found |= {"mib": opened["now"] - before["now"], "peak_mib": memory()["peak"] - before["now"]}
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))


if __name__ == "__main__":
    main()
