# Data, weights and FP training: everything before quantization.


rule data:
    output:
        f"{OUT}/data.json",
    log:
        f"{OUT}/logs/data.log",
    localrule: True  # on a cluster, what needs the internet
    conda:
        "../../environment.yml"
    params:
        code=code_of("ptmq.data.datasets"),
        dataset=shlex.quote(PROFILE["dataset"]),
    shell:
        logged("python -m ptmq data --dataset {params.dataset} $PTMQ_FETCH --out {output}")


rule weights:
    output:
        protected(f"{OUT}/weights/{{backbone}}.safetensors"),
    log:
        f"{OUT}/logs/weights/{{backbone}}.log",
    # A public checkpoint, checked by hash, under the network's own names.
    localrule: True
    conda:
        "../../environment.yml"
    params:
        code=code_of("ptmq.models.checkpoints"),
        entry=registry_entry,
    shell:
        logged("python -m ptmq weights --backbone {wildcards.backbone} $PTMQ_FETCH --out {output}")


rule train:
    # A network without a public checkpoint is trained here.
    input:
        data=rules.data.output,
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
        code=code_of("ptmq.training.floating_point"),
        entry=registry_entry,
        device=DEVICE,
    shell:
        logged(
            "python -m ptmq train --backbone {wildcards.backbone} {params.settings} --device {params.device}"
            " --threads {threads} --out {output}"
        )


ruleorder: train > weights
