"""A profile's own records become published ones; then every published table and figure is rebuilt.

    publish.py --profile cifar10 [--results results] [--published results/published]

Only records of committed code are taken: one whose commit is unknown, or ends with '+', is refused by its name.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import paper

KINDS = ("records", "mixed", "deploy")


def unpublishable(path: Path) -> bool:
    """Whether a record is of code that was not committed."""
    commit = json.loads(path.read_text())["commit"]
    return commit == "unknown" or commit.endswith("+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--published", type=Path, default=Path("results/published"))
    args = parser.parse_args()
    own, published = args.results / args.profile, args.published / args.profile
    records = [path for kind in KINDS for path in sorted((own / kind).rglob("*")) if path.is_file()]
    if not records:
        sys.exit(f"error: {str(own)!r} has no records. Run the profile first.")
    refused = [str(path) for path in records if path.suffix == ".json" and unpublishable(path)]
    if refused:
        sys.exit(
            f"error: {len(refused)} records are of code that was not committed, first {refused[0]!r}. Commit, "
            "remove them and run the profile again."
        )
    for path in records:
        target = published / path.relative_to(own)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    print(f"{len(records)} files published in {published}")
    paper.rebuild(args.published)


if __name__ == "__main__":
    main()
