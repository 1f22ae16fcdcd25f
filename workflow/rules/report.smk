# From run records to tables, figures and MLflow; nothing here needs torch, data or a GPU.

TABLES = expand(f"{OUT}/tables/{{table}}.{{ext}}", table=["accuracy", "divergence", "cost"], ext=["csv", "md", "tex"])
FIGURES = expand(f"{OUT}/figures/accuracy.{{ext}}", ext=["pdf", "svg", "png"])

BLOCKS = expand(f"{OUT}/figures/{{figure}}.{{ext}}", figure=["blocks", "rounding"], ext=["pdf", "svg", "png"])
COST = expand(f"{OUT}/figures/cost.{{ext}}", ext=["pdf", "svg", "png"])
LEARNED = [name for name, run in RUNS.items() if run.variant == "default" and not run.method.startswith("nearest")]


rule collect:
    # One tidy row a backbone, method, variant, width and seed.
    input:
        records=RECORDS,
        code="workflow/scripts/collect.py",
    output:
        f"{OUT}/runs.csv",
    log:
        f"{OUT}/logs/collect.log",
    conda:
        "../../environment.yml"
    params:
        root=lambda wildcards, output: os.path.dirname(output[0]),
        names=REPORTED,
    shell:
        "python workflow/scripts/collect.py --root {params.root} --out {output} {params.names} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule tables:
    input:
        runs=rules.collect.output,
        code="workflow/scripts/tables.py",
    output:
        report(TABLES, category="Tables", caption="../captions/tables.rst"),
    log:
        f"{OUT}/logs/tables.log",
    conda:
        "../../environment.yml"
    params:
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "python workflow/scripts/tables.py --runs {input.runs} --out {params.folder} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule figures:
    input:
        runs=rules.collect.output,
        code=[f"workflow/scripts/{name}.py" for name in ("figures", "style", "tables")],
    output:
        report(FIGURES, category="Figures", caption="../captions/accuracy.rst"),
    log:
        f"{OUT}/logs/figures.log",
    conda:
        "../../environment.yml"
    params:
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "python workflow/scripts/figures.py --runs {input.runs} --out {params.folder} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule blocks:
    input:
        records=expand(f"{OUT}/records/{{name}}.json", name=LEARNED),
        code=[f"workflow/scripts/{name}.py" for name in ("blocks", "style")],
    output:
        report(BLOCKS, category="Figures", caption="../captions/blocks.rst"),
    log:
        f"{OUT}/logs/blocks.log",
    conda:
        "../../environment.yml"
    params:
        root=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])),
        names=" ".join(LEARNED),
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "python workflow/scripts/blocks.py --root {params.root} --out {params.folder} {params.names} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule cost:
    input:
        runs=rules.collect.output,
        code=[f"workflow/scripts/{name}.py" for name in ("cost", "style", "tables")],
    output:
        report(COST, category="Figures", caption="../captions/cost.rst"),
    log:
        f"{OUT}/logs/cost.log",
    conda:
        "../../environment.yml"
    params:
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "python workflow/scripts/cost.py --runs {input.runs} --out {params.folder} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule mlflow:
    # One process logs all records: a record that is there already is left alone.
    input:
        records=RECORDS,
        tables=TABLES,
        figures=FIGURES,
        code="workflow/scripts/log_mlflow.py",
    output:
        f"{OUT}/mlflow.json",
    log:
        f"{OUT}/logs/mlflow.log",
    conda:
        "../../environment.yml"
    params:
        root=lambda wildcards, output: os.path.dirname(output[0]),
        uri=PROFILE.get("tracking_uri") or f"sqlite:///{OUT}/mlflow.db",
        profile=PROFILE["profile"],
    shell:
        "python workflow/scripts/log_mlflow.py --root {params.root} --uri {params.uri:q} --experiment {params.profile} --out {output}"
        " --artifacts {input.tables} {input.figures} --records {input.records} > {log} 2>&1"
        " || {{ tail -n 5 {log} >&2; exit 1; }}"


REPORT_WHAT_IS_THERE = (
    f"python workflow/scripts/collect.py --root {OUT} --out {OUT}/runs.csv --partial {REPORTED}"
    f" && python workflow/scripts/tables.py --runs {OUT}/runs.csv --out {OUT}/tables"
    f" && python workflow/scripts/figures.py --runs {OUT}/runs.csv --out {OUT}/figures"
)
