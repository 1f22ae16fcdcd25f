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
        conda:
            "../../environment.yml"
        params:
            root=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])),
            name=ablation,
        shell:
            "python workflow/scripts/ablation.py --root {params.root} --name {params.name} --records {input.records}"
            " > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


# The ablations that the profile has variants for.
ABLATED = [path for ablation in ABLATIONS if variants_of(ablation) for path in ablation_outputs(ablation)]


rule ablations:
    input:
        ABLATED,
