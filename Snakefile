# PTMQ and its baselines, from images to tables: snakemake --cores 8 all
# Another profile: --configfile workflow/config/cifar10.yaml · one value: --config 'seeds=[0,1,2]'

import os

import yaml
from snakemake.utils import min_version, update_config

min_version("9.0")

if "dataset" not in config:  # no --configfile was given; also where this is a module of another workflow
    with open(os.path.join(workflow.current_basedir, "workflow/config/digits.yaml")) as file:
        default = yaml.safe_load(file)
    update_config(default, config)
    config.update(default)


include: "workflow/rules/common.smk"


if not FROM_RECORDS:

    include: "workflow/rules/prepare.smk"
    include: "workflow/rules/quantize.smk"
    include: "workflow/rules/evaluate.smk"
    include: "workflow/rules/deploy.smk"
    include: "workflow/rules/bench.smk"

    check_rules()


include: "workflow/rules/report.smk"
include: "workflow/rules/mlflow.smk"
include: "workflow/rules/site.smk"


rule all:
    default_target: True
    input:
        f"{OUT}/profile.json",
        f"{OUT}/runs.csv",
        ARTIFACTS,
        f"{OUT}/mlflow.json",


onerror:
    # What did finish is still reported; the cells that failed name their log.
    shell(REPORT_WHAT_IS_THERE)
