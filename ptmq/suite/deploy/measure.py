"""What an exported file is worth: does it compute what was calibrated, how large is it, how fast beside FP32."""

import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmq.api import load_model
from ptmq.common import provenance
from ptmq.common.bits import BitWidth
from ptmq.common.device import keep_freed_memory
from ptmq.common.errors import InputError, require
from ptmq.common.files import sha256
from ptmq.data.datasets import open_images
from ptmq.data.images import Images
from ptmq.export.frozen import simulate
from ptmq.export.session import INTEGER_OPERATORS, Deployed, open_session, operators
from ptmq.export.skeleton import IMAGES
from ptmq.models.backbone import get_backbone
from ptmq.network.model import MultiBitModel
from ptmq.suite import run_record
from ptmq.suite.deploy.files import export_fp32
from ptmq.suite.deploy.latency import has_vnni, interleaved, switching
from ptmq.suite.deploy.opening import opening
from ptmq.suite.evaluation import indices

BATCHES = (1, 32)  # images a call, of which latency is measured
SIMULATED = 10_000  # images on which the file is held against float64, which takes long


def deploy(
    folder: Path, file: Path, weights: Path, split: str, data_dir: str | None, threads: int, repeats: int
) -> dict[str, Any]:
    """The record of an exported file: parity, accuracy, size, latency, memory, and which kernels run.

    folder: of the calibrated model · file: its ONNX file at all widths · weights: of the FP network, whose own ONNX
    file is timed beside it.
    """
    require(repeats >= 1, "--repeats", "at least 1", repeats)
    start = time.perf_counter()
    model, info = load_model(folder)
    if not isinstance(model, MultiBitModel):
        raise InputError(f"model {str(folder)!r} is a {type(model).__name__}, which cannot be exported.")
    run = info["run"]
    images, hashes = open_images(run["backbone"], split, data_dir, run["dataset"])
    keep_freed_memory()
    deployed = Deployed(file, threads)
    with tempfile.TemporaryDirectory() as scratch:
        fp32, optimized = Path(scratch, "fp32.onnx"), Path(scratch, "optimized.onnx")
        export_fp32(run["backbone"], weights, model.image_shape, fp32)
        reference = open_session(fp32, threads)
        opened = {name: opening(path, threads, max(BATCHES)) for name, path in (("file", file), ("fp32", fp32))}
        open_session(file, threads, optimized)
        kernels = operators(optimized)
        size: dict[str, float] = {"bytes": file.stat().st_size, "fp32_bytes": fp32.stat().st_size}
    count = sum(layer.shape.numel() for layer in model.layers)
    size["bits_per_weight"] = round(8 * size["bytes"] / count, 3)
    cases = {str(width): partial(deployed, width=str(width)) for width in model.widths}
    return {
        "format": run_record.FORMAT,
        "split": split,
        "results": [parity(model, deployed, width, images) for width in model.widths],
        "size": size,
        "latency": {str(count): timed(cases, reference, images, deployed, count, repeats) for count in BATCHES},
        "opening": opened,
        "kernels": {
            "integer": {name: count for name, count in kernels.items() if name in INTEGER_OPERATORS},
            "float": {name: kernels[name] for name in ("Conv", "Gemm", "MatMul") if name in kernels},
            "branches": len(model.widths),
        },
        "floats": deployed.about["float"],
        "run": run,
        "cost": {"seconds": time.perf_counter() - start, **run_record.load("load_end")},
        "sha256": {"file": sha256(file), "weights": sha256(weights), "data": hashes},
        "environment": {
            **run_record.environment(torch.device("cpu")),
            "threads": threads,
            "vnni": has_vnni(),
            "repeats": repeats,
            **{name: version(name) for name in ("onnx", "onnxruntime", "onnxscript")},
        },
        "code_sha256": provenance.code_sha256(
            "ptmq.suite.deploy.measure", get_backbone(run["backbone"]).build.split(":")[0]
        ),
        "commit": provenance.commit(),
    }


def entering(deployed: Deployed, images: Images, index: Tensor) -> np.ndarray:
    """Images as the file takes them: bytes, or prepared."""
    return (images.pixels(index) if deployed.takes_bytes else images.batch(index)[0]).numpy()


@torch.no_grad()
def parity(model: MultiBitModel, deployed: Deployed, width: BitWidth, images: Images) -> dict[str, Any]:
    """A file's accuracy at a width, and how far its logits are those of the model, in float32 and in float64.

    In float64 on the first SIMULATED images.
    """
    simulation = simulate(model, width)
    model.set_bits(width.weight, width.activation)
    found: dict[str, list[Any]] = {"file": [], "model": [], "simulation": []}
    for index in indices(images):
        x = images.batch(index)[0]
        found["file"].append(deployed(entering(deployed, images, index), str(width)))
        found["model"].append(model(x).numpy())
        if int(index[-1]) < SIMULATED:
            found["simulation"].append(simulation(x.double()).numpy())
    logits = {name: np.concatenate(parts) for name, parts in found.items() if parts}
    labels = images.labels.numpy()
    top1 = {
        name: round(100 * float((each.argmax(1) == labels[: len(each)]).mean()), 4) for name, each in logits.items()
    }
    pairs = {
        name: {
            "images": len(other),
            "equal": round(100 * float((logits["file"][: len(other)].argmax(1) == other.argmax(1)).mean()), 4),
            "largest_difference": float(np.abs(logits["file"][: len(other)] - other).max()),
        }
        for name, other in logits.items()
        if name != "file"
    }
    pairs["simulation"]["top1"] = top1["simulation"]
    return {"width": str(width), "top1": top1["file"], "model_top1": top1["model"], "images": len(labels), **pairs}


def timed(
    cases: Mapping[str, Callable], reference: Any, images: Images, deployed: Deployed, count: int, repeats: int
) -> dict[str, Any]:
    """Milliseconds of a call with `count` images at every width, of the FP32 file, and with another width each time."""
    index = torch.arange(min(count, len(images)))
    x, prepared = entering(deployed, images, index), images.batch(index)[0].numpy()
    calls: dict[str, Callable[[], object]] = {width: partial(call, x) for width, call in cases.items()}
    calls["fp32"] = lambda: reference.run(None, {IMAGES: prepared})
    return {**interleaved(calls, repeats), "switching": switching(list(cases.values()), x, repeats)}
