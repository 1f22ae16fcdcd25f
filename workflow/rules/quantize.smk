# One rule a method, made from one template. To add a baseline: baselines/<name>.py and a rule like those below.


rule quantize:
    # The template. Its own wildcard matches no method: each method has its rule below.
    input:
        data=rules.data.output,
        weights=f"{OUT}/weights/{{backbone}}.safetensors",
    output:
        model=f"{OUT}/models/{RUN}/model.safetensors",
        description=f"{OUT}/models/{RUN}/model.json",
    log:
        f"{OUT}/logs/quantize/{RUN}.log",
    benchmark:
        f"{OUT}/logs/benchmarks/{RUN}.tsv"
    wildcard_constraints:
        method="none",
    conda:
        "../../environment.yml"
    threads: THREADS
    resources:
        cpu=THREADS,
        gpu=on_gpu(),
    params:
        code=code_of("ptmq.suite.calibration"),
        entry=registry_entry,
        spec=spec,
        folder=lambda wildcards, output: os.path.dirname(output.model),
    shell:
        logged("python -m ptmq quantize --spec {params.spec:q} --weights {input.weights} --out {params.folder}")


use rule quantize as nearest with:
    wildcard_constraints:
        method="nearest_minmax|nearest_mse",


use rule quantize as ptmq with:
    wildcard_constraints:
        method="ptmq",


use rule quantize as adaround with:
    wildcard_constraints:
        method="adaround",


use rule quantize as brecq with:
    wildcard_constraints:
        method="brecq",


use rule quantize as qdrop with:
    wildcard_constraints:
        method="qdrop",


use rule quantize as flexround with:
    wildcard_constraints:
        method="flexround",


use rule quantize as adaptive_bn with:
    wildcard_constraints:
        method="adaptive_bn",


use rule quantize as any_precision with:
    wildcard_constraints:
        method="any_precision",


use rule quantize as multiquant with:
    wildcard_constraints:
        method="multiquant",


use rule quantize as robustquant with:
    wildcard_constraints:
        method="robustquant",


use rule quantize as nested with:
    wildcard_constraints:
        method="nested",


use rule quantize as nearest_corrected with:
    wildcard_constraints:
        method="nearest_corrected",


use rule quantize as genie with:
    wildcard_constraints:
        method="genie",


use rule quantize as matgptq with:
    wildcard_constraints:
        method="matgptq",


use rule quantize as quept with:
    wildcard_constraints:
        method="quept",
