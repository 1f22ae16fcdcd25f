# One rule a method, made from one template. To add a baseline: baselines/<name>.py and a rule like those below.


rule quantize:
    # The template. Its own wildcard matches no method: each method has its rule below.
    input:
        data=rules.data.output,
        weights=f"{OUT}/weights/{{backbone}}.safetensors",
        code=ENGINE_CODE,
        network=model_code,
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
        spec=spec,
        folder=lambda wildcards, output: os.path.dirname(output.model),
        options=option("data-dir"),
        entry=registry_entry,
    shell:
        "python -m ptmq quantize --spec {params.spec:q} --weights {input.weights} {params.options}"
        " --out {params.folder} > {log} 2>&1 || {{ tail -n 5 {log} >&2; exit 1; }}"


use rule quantize as nearest with:
    input:
        **rules.quantize.input,
        method="baselines/nearest.py",
    wildcard_constraints:
        method="nearest_minmax|nearest_mse",


use rule quantize as ptmq with:
    input:
        **rules.quantize.input,
        method="ptmq/methods/ptmq.py",
    wildcard_constraints:
        method="ptmq",


use rule quantize as adaround with:
    input:
        **rules.quantize.input,
        method="baselines/adaround.py",
    wildcard_constraints:
        method="adaround",


use rule quantize as brecq with:
    input:
        **rules.quantize.input,
        method="baselines/brecq.py",
    wildcard_constraints:
        method="brecq",


use rule quantize as qdrop with:
    input:
        **rules.quantize.input,
        method="baselines/qdrop.py",
    wildcard_constraints:
        method="qdrop",


use rule quantize as flexround with:
    input:
        **rules.quantize.input,
        method="baselines/flexround.py",
    wildcard_constraints:
        method="flexround",


# Methods with a model of their own, which evaluating needs, too (OWN_MODEL in common.smk).


use rule quantize as adaptive_bn with:
    input:
        **rules.quantize.input,
        method=OWN_MODEL["adaptive_bn"],
    wildcard_constraints:
        method="adaptive_bn",


# Methods that train with labels.


use rule quantize as any_precision with:
    input:
        **rules.quantize.input,
        method=OWN_MODEL["any_precision"] + TRAINING_CODE,
    wildcard_constraints:
        method="any_precision",


use rule quantize as multiquant with:
    input:
        **rules.quantize.input,
        method=OWN_MODEL["multiquant"] + TRAINING_CODE,
    wildcard_constraints:
        method="multiquant",


use rule quantize as robustquant with:
    input:
        **rules.quantize.input,
        method=["baselines/robustquant.py"] + TRAINING_CODE,
    wildcard_constraints:
        method="robustquant",
