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

PROJECT = Path(workflow.current_basedir).parent.parent
SCRIPTS = PROJECT / "workflow/scripts"
sys.path.insert(0, str(PROJECT))
# The rules' `python` is the one that runs Snakemake, whether or not its environment was activated, with this checkout's
# packages, whatever is installed and from wherever it runs.
os.environ.update(
    PATH=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]),
    PTMQ_PROJECT=str(PROJECT),
    PYTHONPATH=os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")])),
)
from ptmq.common.errors import InputError
from ptmq.common.provenance import code_sha256, file_of_method
from ptmq.models.zoo import BACKBONES
from ptmq.suite.profile import FP32, all_runs, validate

try:
    PROFILE = validate(config)
    RUNS = {run.name: run for run in all_runs(PROFILE)}
except InputError as error:
    raise WorkflowError(str(error))

OUT = f"results/{PROFILE['profile']}"
FROM_RECORDS = PROFILE.pop("from_records", False)
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
DEVICE, THREADS = PROFILE.get("device", "auto"), PROFILE.get("threads", 1)
FP_RUNS = {f"{backbone}/{FP32}/default/W32A32/seed0" for backbone in PROFILE["backbones"]}
NAMES = sorted(FP_RUNS) + sorted(RUNS)
if FROM_RECORDS and not any(os.path.exists(f"{OUT}/records/{name}.json") for name in NAMES):
    raise WorkflowError(f"from_records is true, but {OUT}/records has no record of a run of the profile. Leave it out.")
TRAINED = [b for b in PROFILE["backbones"] if b in BACKBONES and BACKBONES[b].training]
RUN = "{backbone}/{method}/{variant}/{label}/seed{seed}"


wildcard_constraints:
    backbone="[^/]+",
    method="[^/]+",
    variant="[^/]+",
    label="[^/]+",
    seed="[0-9]+",


# `--cores 8` starts at most as many heavy jobs as the machine has cores, and one at a time on a GPU;
# profiles for clusters give other limits. Snakemake offers no public way to set a default limit in a workflow.
ALL_CPUS = max(os.cpu_count(), THREADS)
workflow.global_resources.setdefault("cpu", ALL_CPUS)
workflow.global_resources.setdefault("gpu", 1)


def files(folder, names):
    """JSON files of runs, such as their records; of those that are there where nothing is computed."""
    paths = expand(f"{OUT}/{folder}/{{name}}.json", name=names)
    return [path for path in paths if os.path.exists(path)] if FROM_RECORDS else paths


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
        entry = BACKBONES.get(getattr(wildcards, "backbone", None))
        file = file_of_method(method) if method else None
        return code_sha256(stage, *[file] if file else [], *[entry.build.split(":")[0]] if entry else [])

    return of_job


def arguments_of(text):
    """For a report's parameters: the script's arguments, once the job's files are known."""

    def of_job(wildcards, input, output):
        folder = os.path.dirname(output[0])
        return text.format(input=input, output=output, folder=folder, root=os.path.dirname(folder))

    return of_job


def inside_results(parents):
    """The files of MLflow's parent runs as paths inside the folder of results."""
    return {
        name: {kind: [os.path.relpath(path, OUT) for path in paths] for kind, paths in files.items()}
        for name, files in parents.items()
    }


def outputs(folder, name):
    """The files of a table or of a figure."""
    return expand(
        f"{OUT}/{folder}/{name}.{{ext}}",
        ext={"tables": ["csv", "html", "md", "tex"], "figures": ["pdf", "svg", "png"]}[folder],
    )


def option(name):
    """`--name value` for a value that the profile may leave out."""
    value = PROFILE.get(name.replace("-", "_"))
    if isinstance(value, bool):
        return f"--{name}" if value else ""
    return f"--{name} {shlex.quote(str(value))}" if value is not None else ""


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
    return repr(BACKBONES.get(wildcards.backbone))


def spec(wildcards):
    """The run that a quantize job computes, as JSON."""
    return RUNS[RUN.format(**wildcards)].to_json()


# The parts of PTMQ that an ablation varies.
ABLATIONS = {
    "mfm": "the cases of the feature mixer",
    "gd": "the forms of the GD-Loss",
    "groups": "the split of the widths into groups",
    "rounding": "the initial V, and R shared or not",
    "budget": "iterations and calibration images",
}


def asked_of(ablation):
    """Names of the runs of an ablation's variants, as the profile asks for them."""
    return [name for name, run in RUNS.items() if run.method == "ptmq" and run.variant.startswith(f"{ablation}_")]


def variants_of(ablation):
    """Those that there are: all, or where nothing is computed the ones with a record."""
    return [name for name in asked_of(ablation) if files("records", [name])]


def ablation_records(ablation):
    """Records that an ablation compares: the default, its variants, and rounding to nearest as the floor.

    Raises WorkflowError where the profile has no such variant, or one without the default to compare it with.
    """
    where = f"profile {PROFILE['profile']!r}"
    if not variants_of(ablation):
        raise WorkflowError(
            f"{where} has no variant of ptmq whose name begins with '{ablation}_', so there is nothing for"
            f" ablation_{ablation} ({ABLATIONS[ablation]}) to compare. Use --configfile"
            " workflow/config/cifar10_ablations.yaml, or add variants to the profile."
        )
    default = [name for name, run in RUNS.items() if run.method == "ptmq" and run.variant == "default"]
    alone = {(RUNS[name].backbone, RUNS[name].seed) for name in asked_of(ablation)}
    alone -= {(RUNS[name].backbone, RUNS[name].seed) for name in default}
    if alone:
        backbone, seed = min(alone)
        raise WorkflowError(
            f"{where}: variants are compared with the variant 'default' of the same backbone and seed, which is missing"
            f" for {backbone}, seed {seed}. Add 'default: {{}}' to the variants of ptmq, with the seeds of the others."
        )
    floor = [name for name, run in RUNS.items() if run.method == "nearest_mse"]
    return files("records", default + variants_of(ablation) + floor)


def all_ablations(wildcards):
    """Tables and figures of the ablations that the profile has variants for. Raises WorkflowError without any."""
    if not ABLATED:
        raise WorkflowError(
            f"profile {PROFILE['profile']!r} has no variants of ptmq to compare. Use --configfile"
            f" workflow/config/cifar10_ablations.yaml, or add variants named {'_..., '.join(ABLATIONS)}_..."
        )
    return ABLATED


def ablation_outputs(ablation):
    """Table and figure of an ablation."""
    return outputs("tables", f"ablation_{ablation}") + outputs("figures", f"ablation_{ablation}")


ABLATED = [path for ablation in ABLATIONS if variants_of(ablation) for path in ablation_outputs(ablation)]


# collect.py is told what was asked for, done or not
REPORTED = " ".join(f"{name}:{','.join(RUNS[name].widths if name in RUNS else ['W32A32'])}" for name in NAMES)
REPORT_WHAT_IS_THERE = (
    f"python $PTMQ_PROJECT/workflow/scripts/collect.py --root {OUT} --out {OUT}/runs.csv --partial {REPORTED}"
    f" && python $PTMQ_PROJECT/workflow/scripts/tables.py --runs {OUT}/runs.csv --out {OUT}/tables"
    f" && python $PTMQ_PROJECT/workflow/scripts/accuracy.py --runs {OUT}/runs.csv --out {OUT}/figures"
)
