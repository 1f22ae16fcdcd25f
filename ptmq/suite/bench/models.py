"""Calibrated models: how long a switch takes, how large exported files are and how fast they run."""

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptmq.api import calibrate
from ptmq.export.onnx_file import export_onnx
from ptmq.export.session import Deployed, open_session
from ptmq.export.skeleton import IMAGES
from ptmq.models.backbone import get_backbone
from ptmq.suite.bench.networks import BUDGET, DRAWN, GROUPS, random_images, random_model, random_network, wait
from ptmq.suite.deploy.files import write_fp32
from ptmq.suite.deploy.latency import has_vnni, in_turn, spreads

EXPORTED = ("resnet20", "shufflenetv2_x0_5", "resnet18", "mobilenet_v2", "vit_tiny_patch16_224")
EXPORT_BATCHES, EXPORT_IMAGES = (1, 32), 8  # images a call; images of the calibration, which times do not depend on
SWITCHES = 200


def switching(case: str, repeats: int, device: torch.device) -> dict[str, Any]:
    """Median milliseconds of switching ResNet-20 to another width, with weights computed before and not."""
    backbone = get_backbone("resnet20")
    model = random_model(backbone.network, backbone.blocks, GROUPS.widths, device)
    model.search_step_sizes(random_images("cifar10", DRAWN).to(device), "minmax")

    def switch(number: int, prepared: bool) -> float:
        width = model.widths[number % len(model.widths)]
        if not prepared:
            model.forget()
        start = time.perf_counter()
        model.set_bits(width.weight, width.activation)
        if not prepared:
            for layer in model.layers:
                layer.weight_at(layer.bits)
        wait(device)
        return 1000 * (time.perf_counter() - start)

    unprepared = statistics.median(switch(i, False) for i in range(SWITCHES))
    model.prepare()
    return {
        "repeats": SWITCHES,
        "prepared_ms": statistics.median(switch(i, True) for i in range(SWITCHES)),
        "unprepared_ms": unprepared,
        "prepared_mib": model.prepared_mib,
        "fp_mib": sum(layer.weight.numel() * layer.weight.element_size() for layer in model.layers) / 2**20,
    }


def exported(case: str, repeats: int, device: torch.device) -> dict[str, Any]:
    """Bytes of one ONNX file of all widths and of the FP32 network's, and milliseconds of a call of each, in turn.

    The model is one of `nested` that learns nothing; 8 bits a weight are stored, and the values of the weights decide
    neither size nor speed.
    """
    name = case.removeprefix("onnx-")
    backbone = get_backbone(name).complete()
    network, x = random_network(backbone.network), random_images(backbone.dataset, max(EXPORT_BATCHES))
    widths = [str(width) for width in GROUPS.widths]
    few_images = x[:EXPORT_IMAGES]
    model = calibrate(network, few_images, "nested", widths, target="onnx", iterations=0, device="cpu", progress=False)
    with tempfile.TemporaryDirectory() as folder:
        file, fp32 = Path(folder, "all.onnx"), Path(folder, "fp32.onnx")
        done = export_onnx(model, file, normalization=(backbone.mean, backbone.std))
        write_fp32(network, name, x.shape[1:], fp32)
        size = {"bytes": done.bytes, "fp32_bytes": fp32.stat().st_size}
        threads = torch.get_num_threads()
        deployed, reference = Deployed(file, threads), open_session(fp32, threads)
    latency, rounds = {}, {}
    for count in EXPORT_BATCHES:
        batch = x[:count].numpy()
        pixels = np.zeros(batch.shape, dtype=np.uint8)
        calls = {width: partial(deployed, pixels, width) for width in widths}
        calls["fp32"] = partial(reference.run, None, {IMAGES: batch})
        times = in_turn(list(calls.values()), repeats, budget=BUDGET)
        latency[count] = spreads(calls, times)
        rounds[count] = len(times[0])
    return {
        "backbone": name, "input": list(x.shape[1:]), "size": size, "latency": latency, "integer": done.integer,
        "floats": [list(row) for row in done.floats], "vnni": has_vnni(), "repeats": rounds,
    }  # fmt: skip
