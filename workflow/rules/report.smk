# From run records to tables, figures and MLflow; nothing here needs torch, data or a GPU.

TABLES = [path for table in ("accuracy", "divergence", "cost") for path in outputs("tables", table)]
ACCURACY, BLOCKS, ROUNDING, COST = (outputs("figures", name) for name in ("accuracy", "blocks", "rounding", "cost"))
FRONTIER = outputs("tables", "frontier") + outputs("figures", "frontier") + outputs("tables", "switching")
RECORDS = files("records", NAMES)
DEFAULTS = [name for name, run in RUNS.items() if run.variant == "default"]
LEARNED = files("records", [name for name in DEFAULTS if not RUNS[name].method.startswith("nearest")])
MIXED = files("mixed", [name for name in DEFAULTS if RUNS[name].method == "ptmq"])
FIGURES = ACCURACY + (BLOCKS + ROUNDING + COST if LEARNED else [])


rule profile:
    # The profile as it took effect, command-line values included.
    output:
        report(f"{OUT}/profile.json", category="Configuration", caption="../captions/profile.rst"),
    log:
        f"{OUT}/logs/profile.log",
    conda:
        "../../environment.yml"
    params:
        profile=json.dumps(PROFILE, indent=2),
    shell:
        "printf '%s\\n' {params.profile:q} > {output} 2> {log}"


rule collect:
    # One tidy row a backbone, method, variant, width and seed.
    input:
        records=RECORDS,
        code=scripts("collect"),
    output:
        report(f"{OUT}/runs.csv", category="Configuration", caption="../captions/runs.rst"),
    log:
        f"{OUT}/logs/collect.log",
    conda:
        "../../environment.yml"
    params:
        root=lambda wildcards, output: os.path.dirname(output[0]),
        names=REPORTED,
        partial="--partial" if FROM_RECORDS else "",
    shell:
        "python workflow/scripts/collect.py --root {params.root} --out {output} {params.partial} {params.names}"
        " > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule tables:
    input:
        runs=rules.collect.output,
        code=scripts("tables"),
    output:
        report(TABLES, category="Tables", caption="../captions/tables.rst"),
    log:
        f"{OUT}/logs/tables.log",
    conda:
        "../../environment.yml"
    params:
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "python workflow/scripts/tables.py --runs {input.runs} --out {params.folder}"
        " > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule accuracy:
    input:
        runs=rules.collect.output,
        code=scripts("accuracy", "style", "tables"),
    output:
        report(ACCURACY, category="Figures", caption="../captions/accuracy.rst"),
    log:
        f"{OUT}/logs/accuracy.log",
    conda:
        "../../environment.yml"
    params:
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "python workflow/scripts/accuracy.py --runs {input.runs} --out {params.folder}"
        " > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule cost:
    input:
        runs=rules.collect.output,
        code=scripts("cost", "style", "tables"),
    output:
        report(COST, category="Figures", caption="../captions/cost.rst"),
    log:
        f"{OUT}/logs/cost.log",
    conda:
        "../../environment.yml"
    params:
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "python workflow/scripts/cost.py --runs {input.runs} --out {params.folder}"
        " > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule blocks:
    # Reconstruction error block by block, and the soft rounding values before and after learning.
    input:
        records=LEARNED,
        code=scripts("blocks", "style", "tables"),
    output:
        report(BLOCKS, category="Figures", caption="../captions/blocks.rst"),
        report(ROUNDING, category="Figures", caption="../captions/rounding.rst"),
    log:
        f"{OUT}/logs/blocks.log",
    conda:
        "../../environment.yml"
    params:
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "python workflow/scripts/blocks.py --out {params.folder} --records {input.records}"
        " > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule figures:
    input:
        FIGURES,


rule frontier:
    # Accuracy against average bits and against size, a width for every block; what a switch costs.
    input:
        records=MIXED,
        code=scripts("frontier", "style", "tables"),
    output:
        report(FRONTIER, category="Mixed precision", caption="../captions/frontier.rst"),
    log:
        f"{OUT}/logs/frontier.log",
    conda:
        "../../environment.yml"
    params:
        root=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])),
    shell:
        "python workflow/scripts/frontier.py --out {params.root} --records {input.records}"
        " > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"
