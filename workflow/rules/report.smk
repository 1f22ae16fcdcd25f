# From run records to tables and figures; nothing here needs torch, data or a GPU. On a cluster it runs where Snakemake
# does: every rule takes seconds.

REPORTS = PLAN.reports()
VERDICT_DATA = [PROJECT / "workflow/published.yaml"]


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


for made, report_of_made in REPORTS.items():

    rule:
        name:
            made
        input:
            **inputs_of(report_of_made),
        output:
            [
                report(paths, category=report_of_made.kind, caption=f"../captions/{caption}.rst")
                for caption, paths in report_of_made.makes.items()
            ],
        log:
            f"{OUT}/logs/{made}.log",
        localrule: True
        conda:
            "../../environment.yml"
        params:
            code=code_sha256(SCRIPTS / f"{report_of_made.script}.py", *(VERDICT_DATA if made == "verdict" else [])),
            script=report_of_made.script,
            arguments=arguments_of(report_of_made),
        shell:
            logged("python $PTMQ_PROJECT/workflow/scripts/{params.script}.py {params.arguments}")


rule figures:
    input:
        [path for name in PLAN.wanted() for path in outputs_of(REPORTS[name]) if "/figures/" in path],
    localrule: True


rule ablations:
    input:
        all_ablations,
    # Those that the profile has variants for.
    localrule: True


rule paper:
    log:
        ".snakemake/paper.log",
    # Every published table and figure, from the published records alone. Always runs.
    localrule: True
    conda:
        "../../environment.yml"
    params:
        published=PUBLISHED,
    shell:
        logged("python $PTMQ_PROJECT/workflow/scripts/paper.py --published {params.published}")
