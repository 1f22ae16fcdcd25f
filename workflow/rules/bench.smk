# How fast the suite is, measured on this machine: snakemake bench. Nothing else runs beside a case.

BENCH = "results/bench"
BENCH_THREADS = [1] if on_gpu() else sorted({1, min(2, os.cpu_count())})
BENCH_BLOCKS = [
    "resnet20-stage1",
    "resnet20-stage2",
    "resnet20-stage3",
    "resnet18-stage1",
    "resnet18-stage4",
    "mobilenet-inverted-residual",
    "deit-tiny-block",
]
BENCH_CALIBRATIONS = ["calibration-resnet18", "calibration-vit_small_patch16_224"]
BENCH_ONNX = [
    "onnx-resnet20",
    "onnx-shufflenetv2_x0_5",
    "onnx-resnet18",
    "onnx-mobilenet_v2",
    "onnx-vit_tiny_patch16_224",
]
BENCH_RECORD = f"{BENCH}/records/{{threads}}/{{case}}.json"
BENCH_OUTPUTS = expand(
    f"{BENCH}/tables/{{table}}.{{ext}}",
    table=["iterations", "operators", "depth", "calibrations", "switching", "processes", "onnx"],
    ext=["csv", "html", "md", "tex"],
) + expand(f"{BENCH}/figures/bench.{{ext}}", ext=["pdf", "svg", "png"])


rule bench_case:
    output:
        BENCH_RECORD,
    log:
        f"{BENCH}/logs/{{threads}}/{{case}}.log",
    conda:
        "../../environment.yml"
    threads: lambda wildcards: int(wildcards.threads)
    resources:
        cpu=ALL_CPUS,
        gpu=on_gpu(),
    params:
        code=code_sha256("ptmq.suite.bench.cases", "ptmq.methods.ptmq", "ptmq.methods.nested", "baselines.qdrop"),
        device=DEVICE,
    shell:
        logged(
            "python -m ptmq bench --case {wildcards.case} --device {params.device} --threads {wildcards.threads}"
            " --out {output}"
        )


rule bench:
    input:
        blocks=expand(BENCH_RECORD, case=BENCH_BLOCKS, threads=BENCH_THREADS),
        others=expand(
            BENCH_RECORD, case=["depth", *BENCH_CALIBRATIONS, "switching", "processes", *BENCH_ONNX], threads=1
        ),
    output:
        report(BENCH_OUTPUTS, category="Speed", caption="../captions/bench.rst"),
    log:
        f"{BENCH}/logs/bench.log",
    conda:
        "../../environment.yml"
    params:
        code=code_sha256(SCRIPTS / "bench.py"),
        root=lambda wildcards, output: os.path.dirname(os.path.dirname(output[0])),
    shell:
        logged(
            "python $PTMQ_PROJECT/workflow/scripts/bench.py --out {params.root}"
            " --records {input.blocks} {input.others}"
        )
