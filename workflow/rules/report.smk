# From run records to tables and figures; nothing here needs torch, data or a GPU. On a cluster it runs where Snakemake
# does: every rule takes seconds.

TABLES = [path for table in ("accuracy", "divergence", "cost") for path in outputs("tables", table)]
ACCURACY, BLOCKS, ROUNDING, COST = (outputs("figures", name) for name in ("accuracy", "blocks", "rounding", "cost"))
FRONTIER = outputs("tables", "frontier") + outputs("figures", "frontier") + outputs("tables", "switching")
VERDICT = outputs("tables", "verdict")
RECORDS = files("records", NAMES)
DEFAULTS = [name for name, run in RUNS.items() if run.variant == "default"]
LEARNED = files("records", [name for name in DEFAULTS if not RUNS[name].method.startswith("nearest")])
MIXED = files("mixed", [name for name in DEFAULTS if RUNS[name].method == "ptmq"])
FIGURES = ACCURACY + (BLOCKS + ROUNDING + COST if LEARNED else [])
# The ablations of a profile are a profile of their own, <name>_ablations; they count where they have been run.
ABLATION_RUNS = [path for path in [f"results/{PROFILE['profile']}_ablations/runs.csv"] if os.path.exists(path)]
PUBLISHED = PROJECT / "workflow/published.yaml"


rule profile:
    # The profile as it took effect, command-line values included.
    output:
        report(f"{OUT}/profile.json", category="Configuration", caption="../captions/profile.rst"),
    log:
        f"{OUT}/logs/profile.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        profile=json.dumps(PROFILE, indent=2),
    shell:
        "printf '%s\\n' {params.profile:q} > {output} 2> {log}"


TIDY = {"runs": f"{OUT}/runs.csv"}
# A rule each: name -> what it reads, the category of what it makes, that by caption, the script's arguments. `folder` is
# where its first output lies, `root` the folder above: in a bucket, they are elsewhere while the rule runs.
REPORTS = {
    "collect": (  # one tidy row a backbone, method, variant, width and seed
        {"records": RECORDS},
        "Configuration",
        {"runs": [TIDY["runs"]]},
        f"--root {{folder}} --out {{output}} {'--partial' if FROM_RECORDS else ''} {REPORTED}",
    ),
    "tables": (TIDY, "Tables", {"tables": TABLES}, "--runs {input.runs} --out {folder}"),
    "accuracy": (TIDY, "Figures", {"accuracy": ACCURACY}, "--runs {input.runs} --out {folder}"),
    "cost": (TIDY, "Figures", {"cost": COST}, "--runs {input.runs} --out {folder}"),
    "blocks": (  # reconstruction error block by block, soft rounding values before and after learning
        {"records": LEARNED},
        "Figures",
        {"blocks": BLOCKS, "rounding": ROUNDING},
        "--out {folder} --records {input.records}",
    ),
    "frontier": (  # accuracy against bits and size, a width for every block; what a switch costs
        {"records": MIXED},
        "Mixed precision",
        {"frontier": FRONTIER},
        "--out {root} --records {input.records}",
    ),
    "verdict": (  # what the runs say about the paper's claims
        {**TIDY, "mixed": MIXED, "ablations": ABLATION_RUNS},
        "Verdict",
        {"verdict": VERDICT},
        "--published $PTMQ_PROJECT/workflow/published.yaml --runs {input.runs} --mixed {input.mixed}"
        f" {'--ablations {input.ablations}' if ABLATION_RUNS else ''} --out {{folder}}",
    ),
}
# One an ablation: the profile's PTMQ variants whose names begin with it, beside the default.
REPORTS |= {
    f"ablation_{name}": (
        {"records": lambda wildcards, name=name: ablation_records(name)},
        "Ablations",
        {f"ablation_{name}": ablation_outputs(name)},
        f"--root {{root}} --name {name} --records {{input.records}}"
        f" --missing {' '.join(run for run in asked_of(name) if run not in variants_of(name))}",
    )
    for name in ABLATIONS
}

for made, (reads, kind, makes, arguments) in REPORTS.items():
    script = made.partition("_")[0]

    rule:
        name:
            made
        input:
            **reads,
        output:
            [report(paths, category=kind, caption=f"../captions/{caption}.rst") for caption, paths in makes.items()],
        log:
            f"{OUT}/logs/{made}.log",
        localrule: True
        conda:
            "../../environment.yml"
        params:
            code=code_sha256(SCRIPTS / f"{script}.py", *[PUBLISHED] if made == "verdict" else []),
            script=script,
            arguments=arguments_of(arguments),
        shell:
            logged("python $PTMQ_PROJECT/workflow/scripts/{params.script}.py {params.arguments}")


rule figures:
    input:
        FIGURES,
    localrule: True


rule ablations:
    input:
        all_ablations,
    # Those that the profile has variants for.
    localrule: True
