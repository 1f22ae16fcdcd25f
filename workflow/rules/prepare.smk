# Data, weights and FP training: everything before quantization.


localrules:  # what needs the internet, on a cluster
    data,
    weights,


rule data:
    output:
        f"{OUT}/data.json",
    log:
        f"{OUT}/logs/data.log",
    conda:
        "../../environment.yml"
    params:
        options=f"--dataset {PROFILE['dataset']} {option('data-dir')} {option('offline')}",
    shell:
        "python -m ptmq data {params.options} --out {output} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule weights:
    # A public checkpoint, checked by hash, under the network's own names.
    input:
        network=model_code,
    output:
        protected(f"{OUT}/weights/{{backbone}}.safetensors"),
    log:
        f"{OUT}/logs/weights/{{backbone}}.log",
    conda:
        "../../environment.yml"
    params:
        options=f"{option('weights-dir')} {option('offline')}",
        entry=registry_entry,
    shell:
        "python -m ptmq weights --backbone {wildcards.backbone} {params.options} --out {output} > {log} 2>&1"
        " || {{ cat {log} >&2; exit 1; }}"


rule train:
    # A network without a public checkpoint is trained here.
    input:
        data=rules.data.output,
        code=DATA_CODE + code("features", "training"),
        network=model_code,
    output:
        protected(f"{OUT}/weights/{{backbone}}.safetensors"),
    log:
        f"{OUT}/logs/train/{{backbone}}.log",
    wildcard_constraints:
        backbone="|".join(TRAINED) or "none",
    conda:
        "../../environment.yml"
    threads: THREADS
    resources:
        cpu=THREADS,
        gpu=on_gpu(),
    params:
        settings=lambda wildcards: " ".join(
            f"--set {shlex.quote(f'{key}={value}')}"
            for key, value in PROFILE["backbones"][wildcards.backbone].get("training", {}).items()
        ),
        options=f"{option('data-dir')} --device {DEVICE}",
        entry=registry_entry,
    shell:
        "python -m ptmq train --backbone {wildcards.backbone} {params.settings} {params.options} --threads {threads}"
        " --out {output} > {log} 2>&1 || {{ tail -n 5 {log} >&2; exit 1; }}"


ruleorder: train > weights
