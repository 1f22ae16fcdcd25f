# Mixed precision: a width for every block of PTMQ's models, chosen after the calibration.

MIXED = [f"{OUT}/mixed/{name}.json" for name, run in RUNS.items() if run.method == "ptmq" and run.variant == "default"]
FRONTIER = expand(f"{OUT}/tables/frontier.{{ext}}", ext=["csv", "md", "tex"]) + expand(
    f"{OUT}/figures/frontier.{{ext}}", ext=["pdf", "svg", "png"]
)


rule mixed:
    # Sensitivities, the search for every budget, accuracy of what it finds, and the cost of a switch.
    input:
        data=rules.data.output,
        model=rules.quantize.output.model,
        description=rules.quantize.output.description,
        weights=f"{OUT}/weights/{{backbone}}.safetensors",
        fp=rules.fp32.output.outputs,
        code=NETWORK_CODE + code("evaluation", "datasets", "features", "frontier", "mixed_precision", "saved"),
        network=model_code,
    output:
        f"{OUT}/mixed/{RUN}.json",
    log:
        f"{OUT}/logs/mixed/{RUN}.log",
    conda:
        "../../environment.yml"
    threads: THREADS
    resources:
        cpu=THREADS,
        gpu=on_gpu(),
    params:
        folder=lambda wildcards, input: os.path.dirname(input.model),
        options=f"{option('data-dir')} {option('split')} --device {DEVICE}",
    shell:
        "python -m ptmq mixed --model {params.folder} --weights {input.weights} --fp-outputs {input.fp} {params.options}"
        " --threads {threads} --out {output} > {log} 2>&1 || {{ tail -n 5 {log} >&2; exit 1; }}"


rule frontier:
    input:
        records=MIXED,
        code=[f"workflow/scripts/{name}.py" for name in ("frontier", "style", "tables")],
    output:
        report(FRONTIER, category="Mixed precision", caption="../captions/frontier.rst"),
    log:
        f"{OUT}/logs/frontier.log",
    conda:
        "../../environment.yml"
    params:
        root=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])),
    shell:
        "python workflow/scripts/frontier.py --out {params.root} --records {input.records} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"
