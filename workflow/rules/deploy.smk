# Models that leave as ONNX, and what the files are worth: snakemake onnx, snakemake deploy. Of runs with target: onnx.

ONNX = f"{OUT}/onnx/{RUN}.onnx"
DEPLOYED = f"{OUT}/deploy/{RUN}.json"


rule export:
    input:
        model=rules.quantize.output.model,
        description=rules.quantize.output.description,
    output:
        ONNX,
    log:
        f"{OUT}/logs/export/{RUN}.log",
    conda:
        "../../environment.yml"
    params:
        code=code_of("ptmq.suite.deploy.files"),
        folder=lambda wildcards, input: os.path.dirname(input.model),
        images="" if PROFILE["dataset"] == "digits" else "--uint8",  # its pixels are no bytes
    shell:
        logged("python -m ptmq export --model {params.folder} {params.images} --out {output}")


rule onnx:
    input:
        deployable(ONNX),
    localrule: True


rule deploy_record:
    # Latency is measured: nothing else runs beside it.
    input:
        data=rules.data.output,
        model=rules.quantize.output.model,
        file=ONNX,
        weights=f"{OUT}/weights/{{backbone}}.safetensors",
    output:
        DEPLOYED,
    log:
        f"{OUT}/logs/deploy/{RUN}.log",
    conda:
        "../../environment.yml"
    threads: THREADS
    resources:
        cpu=ALL_CPUS,
    params:
        code=code_of("ptmq.suite.deploy.measure"),
        folder=lambda wildcards, input: os.path.dirname(input.model),
        options=f"--split {PROFILE['split']}",
    shell:
        logged(
            "python -m ptmq deploy --model {params.folder} --file {input.file} --weights {input.weights} {params.options}"
            " --threads {threads} --out {output}"
        )


rule deploy:
    input:
        deployable(DEPLOYED),
    output:
        report(
            PLAN.outputs("tables", "deploy") + PLAN.outputs("figures", "deploy"),
            category="Deployment",
            caption="../captions/deploy.rst",
        ),
    log:
        f"{OUT}/logs/deploy.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        code=code_sha256(SCRIPTS / "deploy.py"),
        root=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])),
    shell:
        logged("python $PTMQ_PROJECT/workflow/scripts/deploy.py --out {params.root} --records {input}")
