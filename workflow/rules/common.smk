# What the rules share: the validated profile, its runs, paths, the machine's limits. No rule is defined here.

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import validate as fill_in_defaults

PROJECT = Path(workflow.current_basedir).parent.parent
SCRIPTS = PROJECT / "workflow/scripts"
sys.path[:0] = [str(PROJECT), str(SCRIPTS)]
# The rules' `python` is the one that runs Snakemake, whether or not its environment was activated, with this checkout's
# packages, whatever is installed and from wherever it runs.
os.environ.update(
    PATH=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]),
    PTMQ_PROJECT=str(PROJECT),
    PYTHONPATH=os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")])),
)
from plan import ABLATIONS, FP_RUN, Plan, outputs_of
from ptmq.common.errors import InputError
from ptmq.common.provenance import code_sha256, file_of_method
from ptmq.models.backbone import find_backbone
from ptmq.suite.profile import FP32, SCHEMA, validate

PUBLISHED = os.path.relpath(PROJECT / "results/published")
try:
    PROFILE = validate(config)
    fill_in_defaults(PROFILE, SCHEMA)
    FROM_RECORDS = PROFILE.pop("from_records")
    OUT = f"results/{PROFILE['profile']}"
    PLAN = Plan(PROFILE, OUT, PUBLISHED, FROM_RECORDS)
except InputError as error:
    raise WorkflowError(str(error))

RUNS = PLAN.runs
CHECKED = f".snakemake/checked/{PROFILE['profile']}.json"


def check_profile():
    """Have every method check its settings, once for each new content of the profile and of the code.

    It takes seconds, because the methods import torch; a mistake is told before anything is planned.
    """
    methods = sorted(filter(None, {file_of_method(name) for name in PROFILE["methods"]}))
    state = {"profile": PROFILE, "code": code_sha256("ptmq.cli", "ptmq.models.zoo", *methods)}
    if os.path.exists(CHECKED):
        with open(CHECKED) as file:
            if json.load(file) == state:
                return
    done = subprocess.run(
        [sys.executable, "-m", "ptmq", "check", "--json", json.dumps(PROFILE)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise WorkflowError(done.stderr.strip().removeprefix("error: "))
    os.makedirs(os.path.dirname(CHECKED), exist_ok=True)
    with open(f"{CHECKED}.{os.getpid()}", "w") as file:
        json.dump(state, file)
    os.replace(file.name, CHECKED)  # whole or not at all


if not FROM_RECORDS:
    check_profile()
# Where data and weights lie, and whether they may be fetched, decides no result: given through the environment, a change
# of it runs nothing again.
folders = {"PTMQ_DATA_DIR": PROFILE.get("data_dir"), "PTMQ_WEIGHTS_DIR": PROFILE.get("weights_dir")}
os.environ.update({name: str(folder) for name, folder in folders.items() if folder})
os.environ.update(PTMQ_FETCH="--offline" if PROFILE["offline"] else "")
DEVICE, THREADS = PROFILE["device"], PROFILE["threads"]
if FROM_RECORDS and not any(map(os.path.exists, PLAN.records)):
    raise WorkflowError(f"from_records is true, but {OUT}/records has no record of a run of the profile. Leave it out.")
TRAINED = [b for b in PROFILE["backbones"] if (entry := find_backbone(b)) and entry.training]
RUN = "{backbone}/{method}/{variant}/{label}/seed{seed}"


wildcard_constraints:
    backbone="(timm/|torchvision/)?[^/]+",
    method="[^/]+",
    variant="[^/]+",
    label="[^/]+",
    seed="[0-9]+",


# `--cores 8` starts at most as many heavy jobs as the machine has cores, and one at a time on a GPU;
# profiles for clusters give other limits. Snakemake offers no public way to set a default limit in a workflow.
ALL_CPUS = max(os.cpu_count(), THREADS)
workflow.global_resources.setdefault("cpu", ALL_CPUS)
workflow.global_resources.setdefault("gpu", 1)


def on_gpu():
    """1 where the profile computes on a GPU."""
    return int(DEVICE == "cuda" or DEVICE == "auto" and shutil.which("nvidia-smi") is not None)


def logged(command):
    """A shell command whose output goes to the rule's log, the end of which is shown where it fails."""
    return f"{command} > {{log}} 2>&1 || {{{{ tail -n 5 {{log}} >&2; exit 1; }}}}"


def code_of(stage):
    """For a rule's parameters: a hash of the code that decides a job's result, whose change reruns the job.

    It is that of the stage's module and, where the job has them, of the method's file and the network's, with
    everything that these import.
    """

    def of_job(wildcards):
        method = getattr(wildcards, "method", None)
        entry = find_backbone(getattr(wildcards, "backbone", ""))
        file = file_of_method(method) if method else None
        return code_sha256(stage, *[file] if file else [], *[entry.build.split(":")[0]] if entry else [])

    return of_job


def inputs_of(report):
    """For a report's rule: its inputs; what is missing for them is told when they are asked for."""

    def lazy(paths):
        def of_job(wildcards):
            try:
                return paths()
            except InputError as error:
                raise WorkflowError(str(error))

        return of_job

    return {name: lazy(paths) if callable(paths) else paths for name, paths in report.reads.items()}


def arguments_of(report):
    """For a report's parameters: the script's arguments, once the job's files are known."""
    return lambda wildcards, input, output: report.command(input, output)


def inside_results(parents):
    """The files of MLflow's parent runs as paths inside the folder of results."""
    return {
        name: {kind: [os.path.relpath(path, OUT) for path in paths] for kind, paths in files.items()}
        for name, files in parents.items()
    }


def check_rules():
    """Every method of the profile needs a rule: say so before Snakemake says 'missing input'."""
    # Snakemake offers no public list of a workflow's rules.
    patterns = [rule.wildcard_constraints.get("method", "") for rule in workflow.rules]
    for method in PROFILE["methods"]:
        if not any(re.fullmatch(pattern, method) for pattern in patterns if pattern != "[^/]+"):
            raise WorkflowError(
                f"method {method!r} has no rule. Add it to workflow/rules/quantize.smk, like its neighbours there"
                " (docs/add_a_baseline.md)."
            )


def registry_entry(wildcards):
    """The backbone's registry entry, so that a change of it is noticed."""
    return repr(find_backbone(wildcards.backbone))


def spec(wildcards):
    """The run that a quantize job computes, as JSON."""
    return RUNS[RUN.format(**wildcards)].to_json()


def all_ablations(wildcards):
    """Tables and figures of the ablations that the profile has variants for. Raises WorkflowError without any."""
    if not PLAN.ablated:
        raise WorkflowError(
            f"profile {PROFILE['profile']!r} has no variants of ptmq or nested to compare. Use --configfile"
            f" workflow/config/cifar10_ablations.yaml, or add variants named {'_..., '.join(ABLATIONS)}_..."
        )
    return [path for ablation in PLAN.ablated for path in outputs_of(REPORTS[f"ablation_{ablation}"])]


def onnx_files(wildcards):
    """The files of all runs that are calibrated for ONNX. Raises WorkflowError without any."""
    try:
        names = PLAN.needed_for_onnx([name for name in PLAN.for_onnx if name in PLAN.planned])
        return [f"{OUT}/onnx/{name}.onnx" for name in names]
    except InputError as error:
        raise WorkflowError(str(error))


# What is reported where jobs failed: into a folder of its own, so that nothing finished is overwritten.
PARTIAL = f"{OUT}/partial"
REPORT_WHAT_IS_THERE = (
    f"python $PTMQ_PROJECT/workflow/scripts/collect.py --root {OUT} --out {PARTIAL}/runs.csv --partial"
    f" --own {PLAN.asked(PLAN.planned)}"
    f" && python $PTMQ_PROJECT/workflow/scripts/tables.py --runs {PARTIAL}/runs.csv --out {PARTIAL}/tables"
    f" && python $PTMQ_PROJECT/workflow/scripts/accuracy.py --runs {PARTIAL}/runs.csv --out {PARTIAL}/figures"
)
