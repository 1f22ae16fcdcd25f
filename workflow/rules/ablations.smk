# One rule an ablation: the profile's PTMQ variants whose names begin with it, beside the default.

for ablation in ABLATIONS:

    rule:
        name:
            f"ablation_{ablation}"
        input:
            records=lambda wildcards, ablation=ablation: ablation_records(ablation),
            code=scripts("ablation", "collect", "intervals", "paired", "style", "tables"),
        output:
            report(ablation_outputs(ablation), category="Ablations", caption=f"../captions/ablation_{ablation}.rst"),
        log:
            f"{OUT}/logs/ablation_{ablation}.log",
        localrule: True
        conda:
            "../../environment.yml"
        params:
            root=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])),
            name=ablation,
            missing=[name for name in asked_of(ablation) if name not in variants_of(ablation)],
        shell:
            "python workflow/scripts/ablation.py --root {params.root} --name {params.name} --records {input.records}"
            " --missing {params.missing} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule ablations:
    # Those that the profile has variants for.
    input:
        all_ablations,
