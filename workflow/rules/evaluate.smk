# Top-1 at every width of a model in one process; each writes one run record, and which images were classified
# correctly. FP outputs are computed once.
# Mixed precision: a width for every block of PTMQ's models, chosen after the calibration.


rule fp32:
    input:
        data=rules.data.output,
        weights=f"{OUT}/weights/{{backbone}}.safetensors",
    output:
        record=f"{OUT}/records/{{backbone}}/{FP32}/default/W32A32/seed0.json",
        correct=f"{OUT}/records/{{backbone}}/{FP32}/default/W32A32/seed0.correct.safetensors",
        outputs=f"{OUT}/fp/{{backbone}}.safetensors",
    log:
        f"{OUT}/logs/evaluate/{{backbone}}/{FP32}/default/W32A32/seed0.log",
    conda:
        "../../environment.yml"
    threads: THREADS
    resources:
        cpu=THREADS,
        gpu=on_gpu(),
    params:
        code=code_of("ptmq.suite.evaluation"),
        options=f"--split {PROFILE['split']} --device {DEVICE}",
        images=f"--images {shlex.quote(PROFILE['dataset'])}",
        entry=registry_entry,
    shell:
        logged(
            "python -m ptmq evaluate --weights {input.weights} --backbone {wildcards.backbone} {params.images}"
            " {params.options} --threads {threads} --fp-outputs {output.outputs} --out {output.record}"
        )


rule evaluate:
    input:
        data=rules.data.output,
        model=rules.quantize.output.model,
        description=rules.quantize.output.description,
        fp=rules.fp32.output.outputs,
    output:
        record=f"{OUT}/records/{RUN}.json",
        correct=f"{OUT}/records/{RUN}.correct.safetensors",
    log:
        f"{OUT}/logs/evaluate/{RUN}.log",
    conda:
        "../../environment.yml"
    threads: THREADS
    resources:
        cpu=THREADS,
        gpu=on_gpu(),
    params:
        code=code_of("ptmq.suite.evaluation"),
        folder=lambda wildcards, input: os.path.dirname(input.model),
        options=f"--split {PROFILE['split']} --device {DEVICE}",
    shell:
        logged(
            "python -m ptmq evaluate --model {params.folder} --fp-outputs {input.fp} {params.options}"
            " --threads {threads} --out {output.record}"
        )


rule mixed:
    # Sensitivities, the search for every budget, accuracy of what it finds, and the cost of a switch.
    input:
        data=rules.data.output,
        model=rules.quantize.output.model,
        description=rules.quantize.output.description,
        weights=f"{OUT}/weights/{{backbone}}.safetensors",
        fp=rules.fp32.output.outputs,
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
        code=code_of("ptmq.suite.frontier"),
        folder=lambda wildcards, input: os.path.dirname(input.model),
        options=f"--split {PROFILE['split']} --device {DEVICE}",
    shell:
        logged(
            "python -m ptmq mixed --model {params.folder} --weights {input.weights} --fp-outputs {input.fp}"
            " {params.options} --threads {threads} --out {output}"
        )


ruleorder: fp32 > evaluate
