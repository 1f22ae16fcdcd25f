# Models that leave as ONNX, and what the files are worth, of runs with target: onnx. `snakemake onnx` makes the files.

ONNX = f"{OUT}/onnx/{RUN}.onnx"
DEPLOYED = f"{OUT}/deploy/{RUN}.json"


rule export:
    input:
        model=rules.quantize.output.model,
        description=rules.quantize.output.description,
        data=rules.data.output,
    output:
        ONNX,
    log:
        f"{OUT}/logs/export/{RUN}.log",
    conda:
        "../../environment.yml"
    params:
        code=code_of("ptmq.suite.deploy.files"),
        folder=lambda wildcards, input: os.path.dirname(input.model),
    shell:
        logged("python -m ptmq export --model {params.folder} --as-stored --out {output}")


rule onnx:
    input:
        onnx_files,
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
