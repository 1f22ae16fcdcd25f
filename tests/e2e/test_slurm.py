"""The workflow on a real Slurm: one controller and two nodes on this machine, of which one dies half-way.

Left out by default; `make slurm` runs it. It needs root, Debian's slurm-wlm, and the executor plug-in.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.projects import copy_of_the_project, jsons, without_times

DEADLINE = 900  # seconds for each half
SYSTEM = Path("/etc/slurm/slurm.conf")  # jobs start with a clean environment and look nowhere else
CONFIGURATION = """
ClusterName=ptmq
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ReturnToService=2
SlurmdTimeout=10
MinJobAge=3600
NodeName=node1 NodeAddr=127.0.0.1 NodeHostname={host} Port={port1} CPUs=1 RealMemory=4000
NodeName=node2 NodeAddr=127.0.0.1 NodeHostname={host} Port={port2} CPUs=1 RealMemory=4000
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
"""
STEPS = "methods={ptmq: {settings: {iterations: 300}}}"
OPTIONS = ["all", "--config", STEPS, "seeds=[0,1]"]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Cluster:
    """A controller and two node daemons; everything they write is in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("state", "spool-node1", "spool-node2"):
            (folder / name).mkdir(parents=True)
        port, port1, port2 = free_ports(3)
        configuration = folder / "slurm.conf"
        configuration.write_text(CONFIGURATION.format(
            host=socket.gethostname(), folder=folder, port=port, port1=port1, port2=port2
        ))  # fmt: skip
        SYSTEM.symlink_to(configuration)

    def start(self) -> None:
        """Start the daemons and wait until both nodes are there."""
        self("slurmctld", "-c")
        for node in ("node1", "node2"):
            self("slurmd", "-N", node)
        for _ in range(30):
            if self("sinfo", "-h", "-o", "%T").split() == ["idle"]:
                return
            time.sleep(1)
        raise RuntimeError((self.folder / "slurmctld.log").read_text())

    def __call__(self, *command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def jobs_on(self, node: str) -> list[str]:
        """Ids of the jobs that run on a node."""
        return self("squeue", "-h", "-t", "RUNNING", "-w", node, "-o", "%i").split()

    def power_off(self, node: str, job: str) -> None:
        """The node and all that runs on it are gone at once, without a word to the controller."""
        os.kill(int((self.folder / f"{node}.pid").read_text()), signal.SIGKILL)
        subprocess.run(["pkill", "-KILL", "-f", rf"slurmstepd: \[{job}\."], check=True)
        for process in Path("/proc").glob("[0-9]*"):
            try:
                variables = (process / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"SLURMD_NODENAME={node}".encode() in variables:
                os.kill(int(process.name), signal.SIGKILL)

    def stop(self) -> None:
        SYSTEM.unlink()
        for pid in self.folder.glob("*.pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.fixture
def cluster(request, tmp_path):
    if not request.config.getoption("--slurm"):
        pytest.skip("make slurm")
    missing = [name for name in ("slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    assert not missing and os.geteuid() == 0, f"needs root and Debian's slurm-wlm. Missing: {missing}"
    assert not SYSTEM.is_symlink() and not SYSTEM.exists(), f"{SYSTEM} exists: this machine has a Slurm of its own"
    cluster = Cluster(tmp_path / "cluster")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def test_a_node_dies_and_the_results_are_those_of_the_local_run(cluster, tmp_path):
    local, remote = (copy_of_the_project(tmp_path / name) for name in ("local", "remote"))
    command = [sys.executable, "-m", "snakemake", *OPTIONS]
    done = subprocess.run([*command, "--cores", "2"], cwd=local, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    command += ["--profile", "workflow/profiles/slurm", "--default-resources", "mem_mb=1500", "runtime=60",
                "--slurm-no-account", "--slurm-status-command", "squeue",
                "--slurm-init-seconds-before-status-checks", "5", "--latency-wait", "10",
                "--resources", "cpu=1", "gpu=1"]  # fmt: skip
    log = (tmp_path / "snakemake.log").open("w")
    process = subprocess.Popen(command, cwd=remote, stdout=log, stderr=log)
    try:
        lost, deadline = None, time.time() + DEADLINE
        while process.poll() is None and lost is None and time.time() < deadline:
            time.sleep(1)
            if list(remote.glob("results/digits/models/*/ptmq/**/unfinished-*")):  # a calibration has begun
                lost = next(iter(cluster.jobs_on("node2")), None)
                if lost:
                    cluster.power_off("node2", lost)
        assert process.wait(DEADLINE) == 0, (tmp_path / "snakemake.log").read_text()
    finally:
        process.kill()
    assert lost, "no job ran on node2 while a calibration was on its way"
    assert "Restarts=1" in cluster("scontrol", "show", "job", lost), "Slurm did not run the lost job again"
    assert len(jsons(local)) > 8
    for path in jsons(local):
        one, two = (json.loads((folder / path).read_text()) for folder in (local, remote))
        assert without_times(one) == without_times(two), path
    runs = [json.loads((folder / "results/digits/mlflow.json").read_text()) for folder in (local, remote)]
    assert len(runs[0]) == len(runs[1])
