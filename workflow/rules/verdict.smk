# What the runs say about the paper's claims.

VERDICT = expand(f"{OUT}/tables/verdict.{{ext}}", ext=["csv", "md", "tex"])
# The ablations of a profile are a profile of their own, <name>_ablations; they count where they have been run.
ABLATED = f"results/{PROFILE['profile']}_ablations/runs.csv"


rule verdict:
    input:
        runs=f"{OUT}/runs.csv",
        mixed=MIXED,
        ablations=[path for path in [ABLATED] if os.path.exists(path)],
        published="workflow/published.yaml",
        code=[f"workflow/scripts/{name}.py" for name in ("verdict", "intervals", "tables")],
    output:
        report(VERDICT, category="Verdict", caption="../captions/verdict.rst"),
    log:
        f"{OUT}/logs/verdict.log",
    conda:
        "../../environment.yml"
    params:
        folder=lambda wildcards, output: os.path.dirname(output[0]),
        ablations=lambda wildcards, input: f"--ablations {input.ablations}" if input.ablations else "",
        backbone=next(iter(PROFILE["backbones"])),
    shell:
        "python workflow/scripts/verdict.py --published {input.published} --runs {input.runs} {params.ablations}"
        " --mixed {input.mixed} --backbone {params.backbone} --out {params.folder} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"
