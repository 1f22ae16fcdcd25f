# One's own results as a site, with the published ones that they are compared with: tables to sort, charts, a page for
# each run. No part of `all`.

TEMPLATES = sorted((PROJECT / "workflow/site").iterdir())


rule site:
    input:
        f"{OUT}/runs.csv",
        ARTIFACTS,
        CHILDREN,
    output:
        f"{OUT}/site/index.html",
    log:
        f"{OUT}/logs/site.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        code=code_sha256(SCRIPTS / "website.py", *TEMPLATES),
        own=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])),
        published=PLAN.published or "",
    shell:
        logged(
            "python $PTMQ_PROJECT/workflow/scripts/website.py --out {params.own}/site {params.own} {params.published}"
        )
