"""Every published table, figure and number of a page, from the published records: no data, weights, torch or GPU.

    paper.py --published results/published

The profiles are those that have a folder there; the reports of each are the ones that the workflow makes.
"""

import argparse
import importlib
import os
from pathlib import Path

import pages
from plan import Plan

from ptmq.suite.profile import read_profile

PROJECT = Path(__file__).resolve().parent.parent.parent
os.environ.setdefault("PTMQ_PROJECT", str(PROJECT))  # as in the workflow


def commands(published: Path) -> list[list[str]]:
    """Scripts with their arguments, in the order in which they have to run."""
    found = []
    for folder in sorted(path for path in published.iterdir() if (path / "records").is_dir()):
        profile = PROJECT / "workflow" / "config" / f"{folder.name}.yaml"
        if profile.exists():
            plan = Plan({**read_profile(profile), "compare": "none"}, str(folder), str(published), from_records=True)
            reports = plan.reports()
            found += [reports[name].command_here() for name in plan.wanted()]
    found.sort(key=lambda command: command[0] != "collect")  # a verdict also reads another profile's runs
    bench = published / "bench"
    if bench.is_dir():
        records = sorted(map(str, bench.glob("records/*/*.json")))
        found.append(["bench", "--out", str(bench), "--records", *records])
    return found


def rebuild(published: Path) -> None:
    """Run them all in this process."""
    for script, *arguments in commands(published):
        print(script, *arguments[:4], flush=True)
        importlib.import_module(script).main([os.path.expandvars(argument) for argument in arguments])
    if published.resolve() == PROJECT / "results" / "published":  # the pages show these, and no other folder's
        pages.main([])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--published", type=Path, required=True)
    rebuild(parser.parse_args().published)


if __name__ == "__main__":
    main()
