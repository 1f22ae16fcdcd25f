"""Commands that are killed with what they started, then run again to their end."""

import os
import random
import signal
import subprocess
import sys
import time


def killed(command, folder, after: float) -> bool:
    """Start a command, kill it and all that it started after some seconds; False where it was done before."""
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return True
    return False


def kill_and_end(command, folder, seconds: float, kills: int, recover=None, start_over=lambda: None) -> None:
    """Kill a command at `kills` random moments of the seconds that it needs, then let it end."""
    moments = random.Random(0)
    while kills:
        if killed(command, folder, moments.uniform(0.1, 0.9) * seconds):
            kills -= 1
        else:  # it came to its end before; what is left of the next run is killed earlier
            seconds *= 0.8
            start_over()
        if recover:
            subprocess.run(recover, cwd=folder, capture_output=True, check=True)
    seconds_of(command, folder)


def seconds_of(command, folder) -> float:
    """How long an undisturbed run takes."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - start


def train(out, epochs: int) -> list[str]:
    return [sys.executable, "-m", "ptmq", "train", "--backbone", "digits_resnet", "--set", f"epochs={epochs}",
            "--out", str(out)]  # fmt: skip


def quantize(method: str, setting: str, weights, out) -> list[str]:
    return [sys.executable, "-m", "ptmq", "quantize", "--profile", "workflow/config/digits.yaml", "--backbone",
            "digits_resnet", "--method", method, "--set", setting, "--weights", str(weights), "--out", str(out)]  # fmt: skip
