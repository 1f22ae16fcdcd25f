# One rule an ablation: the runs of the profile's PTMQ variants whose name begins with it, beside the default.

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
        root=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])),
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
        root=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])),
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
        root=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])),
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
        root=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])),
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
        root=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])),
        name="budget",
        names=" ".join(ablation_runs("budget")),


rule ablations:
    # All that the profile has variants for.
    input:
        [ablation_outputs(ablation) for ablation in ABLATIONS if has_ablation(ablation)],
