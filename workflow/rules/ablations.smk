# One rule an ablation: the runs of the profile's PTMQ variants whose name begins with it, beside the default.

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


ABLATION_CODE = [f"workflow/scripts/{name}.py" for name in ("ablation", "collect", "intervals", "style", "tables")]


rule ablation_mfm:
    input:
        records=ablation_records("mfm"),
        code=ABLATION_CODE,
    output:
        report(ablation_outputs("mfm"), category="Ablations", caption="../captions/ablation_mfm.rst"),
    log:
        f"{OUT}/logs/ablation_mfm.log",
    conda:
        "../../environment.yml"
    params:
        root=OUT,
        name="mfm",
        names=" ".join(ablation_runs("mfm")),
    shell:
        "python workflow/scripts/ablation.py --root {params.root} --name {params.name} {params.names} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


use rule ablation_mfm as ablation_gd with:
    input:
        records=ablation_records("gd"),
        code=ABLATION_CODE,
    output:
        report(ablation_outputs("gd"), category="Ablations", caption="../captions/ablation_gd.rst"),
    log:
        f"{OUT}/logs/ablation_gd.log",
    params:
        root=OUT,
        name="gd",
        names=" ".join(ablation_runs("gd")),


use rule ablation_mfm as ablation_groups with:
    input:
        records=ablation_records("groups"),
        code=ABLATION_CODE,
    output:
        report(ablation_outputs("groups"), category="Ablations", caption="../captions/ablation_groups.rst"),
    log:
        f"{OUT}/logs/ablation_groups.log",
    params:
        root=OUT,
        name="groups",
        names=" ".join(ablation_runs("groups")),


use rule ablation_mfm as ablation_rounding with:
    input:
        records=ablation_records("rounding"),
        code=ABLATION_CODE,
    output:
        report(ablation_outputs("rounding"), category="Ablations", caption="../captions/ablation_rounding.rst"),
    log:
        f"{OUT}/logs/ablation_rounding.log",
    params:
        root=OUT,
        name="rounding",
        names=" ".join(ablation_runs("rounding")),


use rule ablation_mfm as ablation_budget with:
    input:
        records=ablation_records("budget"),
        code=ABLATION_CODE,
    output:
        report(ablation_outputs("budget"), category="Ablations", caption="../captions/ablation_budget.rst"),
    log:
        f"{OUT}/logs/ablation_budget.log",
    params:
        root=OUT,
        name="budget",
        names=" ".join(ablation_runs("budget")),


rule ablations:
    # All that the profile has variants for.
    input:
        [ablation_outputs(ablation) for ablation in ABLATIONS if has_ablation(ablation)],
