# What the rules share: the validated profile, its runs, paths, the machine's limits. No rule is defined here.

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, workflow.basedir)
# the rules' `python` is the one that runs Snakemake, whether or not its environment was activated
os.environ.update(PATH=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))
from ptmq.backbones import BACKBONES
from ptmq.config import FP32, all_runs, validate
from ptmq.errors import InputError

try:
    PROFILE = validate(config)
    RUNS = {run.name: run for run in all_runs(PROFILE)}
except InputError as error:
    raise WorkflowError(str(error))

OUT = f"results/{PROFILE['profile']}"
CHECKED = f".snakemake/checked/{PROFILE['profile']}.json"


def code_state():
    """A hash of everything that checks a profile."""
    files = sorted(path for folder in ("ptmq", "baselines") for path in Path(workflow.basedir, folder).glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def check_profile():
    """Have every method check its settings, once for each new content of the profile and of the code.

    It takes seconds, because the methods import torch; a mistake is told before anything is planned.
    """
    state = {"profile": PROFILE, "code": code_state()}
    if os.path.exists(CHECKED):
        with open(CHECKED) as file:
            if json.load(file) == state:
                return
    done = subprocess.run(
        [sys.executable, "-m", "ptmq", "check", "--json", json.dumps(PROFILE)],
        cwd=workflow.basedir,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise WorkflowError(done.stderr.strip().removeprefix("error: "))
    os.makedirs(os.path.dirname(CHECKED), exist_ok=True)
    with open(CHECKED, "w") as file:
        json.dump(state, file)


check_profile()
DEVICE, THREADS = PROFILE.get("device", "auto"), PROFILE.get("threads", 1)
FP_RUNS = {f"{backbone}/{FP32}/default/W32A32/seed0" for backbone in PROFILE["backbones"]}
NAMES = sorted(FP_RUNS) + sorted(RUNS)
RECORDS = expand(f"{OUT}/records/{{name}}.json", name=NAMES)
TRAINED = [b for b in PROFILE["backbones"] if b in BACKBONES and BACKBONES[b].training]
RUN = "{backbone}/{method}/{variant}/{label}/seed{seed}"


wildcard_constraints:
    backbone="[^/]+",
    method="[^/]+",
    variant="[^/]+",
    label="[^/]+",
    seed="[0-9]+",


# `--cores 8` starts at most as many heavy jobs as the machine has cores, and one at a time on a GPU.
workflow.global_resources["cpu"] = max(os.cpu_count(), THREADS)
workflow.global_resources["gpu"] = 1


def on_gpu():
    """1 where the profile computes on a GPU."""
    return int(DEVICE == "cuda" or DEVICE == "auto" and shutil.which("nvidia-smi") is not None)


def code(*names):
    """Modules whose content decides a stage's result: a change of one reruns the stage."""
    return [f"ptmq/{name}.py" for name in names]


NETWORK_CODE = code("bits", "fake_quant", "graph", "layers", "multibit", "rounding", "step_size", "weights")
ENGINE_CODE = NETWORK_CODE + code(
    "calibration", "datasets", "features", "losses", "methods", "mixer", "phase", "reconstruct", "settings"
)


def option(name):
    """`--name value` for a value that the profile may leave out."""
    value = PROFILE.get(name.replace("-", "_"))
    if isinstance(value, bool):
        return f"--{name}" if value else ""
    return f"--{name} {shlex.quote(str(value))}" if value is not None else ""


def model_code(wildcards):
    """The file that builds the backbone, where it is one of ours."""
    entry = BACKBONES.get(wildcards.backbone)
    package, *names = entry.build.split(":")[0].split(".") if entry else [""]
    return [os.path.join(package, *names) + ".py"] if package == "ptmq" else []


def check_rules():
    """Every method of the profile needs a rule: say so before Snakemake says 'missing input'."""
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


ABLATIONS = ("mfm", "gd", "groups", "rounding", "budget")


def ablation_runs(ablation):
    """Names of the runs that an ablation compares: the default, its variants, and rounding to nearest as the floor."""
    return [
        name
        for name, run in RUNS.items()
        if (run.method == "ptmq" and (run.variant == "default" or run.variant.startswith(f"{ablation}_")))
        or run.method == "nearest_mse"
    ]


def has_ablation(ablation):
    """Whether the profile has variants of it."""
    return any(run.method == "ptmq" and run.variant.startswith(f"{ablation}_") for run in RUNS.values())


def ablation_records(ablation):
    """Their run records; none where the profile has no such variant."""
    return expand(f"{OUT}/records/{{name}}.json", name=ablation_runs(ablation)) if has_ablation(ablation) else []


def ablation_outputs(ablation):
    """Table and figure of an ablation."""
    return expand(f"{OUT}/tables/ablation_{ablation}.{{ext}}", ext=["csv", "md", "tex"]) + expand(
        f"{OUT}/figures/ablation_{ablation}.{{ext}}", ext=["pdf", "svg", "png"]
    )


REPORTED = " ".join(f"{name}:{','.join(RUNS[name].widths if name in RUNS else ['W32A32'])}" for name in NAMES)
