# What the runs say about the paper's claims.

VERDICT = outputs("tables", "verdict")
# The ablations of a profile are a profile of their own, <name>_ablations; they count where they have been run.
ABLATION_RUNS = [path for path in [f"results/{PROFILE['profile']}_ablations/runs.csv"] if os.path.exists(path)]


rule verdict:
    input:
        runs=rules.collect.output,
        mixed=MIXED,
        ablations=ABLATION_RUNS,
        published="workflow/published.yaml",
        code=scripts("verdict", "intervals", "paired", "tables"),
    output:
        report(VERDICT, category="Verdict", caption="../captions/verdict.rst"),
    log:
        f"{OUT}/logs/verdict.log",
    conda:
        "../../environment.yml"
    params:
        folder=lambda wildcards, output: os.path.dirname(output[0]),
        ablations=lambda wildcards, input: f"--ablations {input.ablations}" if input.ablations else "",
    shell:
        "python workflow/scripts/verdict.py --published {input.published} --runs {input.runs} {params.ablations}"
        " --mixed {input.mixed} --out {params.folder} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"
