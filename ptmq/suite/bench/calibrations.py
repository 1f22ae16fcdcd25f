"""Whole calibrations: their seconds against depth, and at the budget of a publication."""

import time
from functools import partial
from typing import Any

import torch

from ptmq.common.bits import BitGroups
from ptmq.methods.interface import Method, create
from ptmq.models.backbone import get_backbone
from ptmq.models.definitions.cifar_resnet import CifarResNet
from ptmq.network.model import MultiBitModel
from ptmq.suite.bench.networks import GROUPS, few, random_images, random_model, wait

WHOLE = ("resnet18", "vit_small_patch16_224")
PUBLISHED_ITERATIONS, PUBLISHED_IMAGES = 20_000, 1024  # of QDrop, on which PTMQ builds
FEW_IMAGES = 64  # on a CPU
DEPTHS, DEPTH_ITERATIONS, DEPTH_IMAGES = (20, 32, 44, 56), 10, 128


def seconds_of(method: Method, model: MultiBitModel, images: torch.Tensor) -> float:
    """Seconds of one calibration of the model."""
    start = time.perf_counter()
    method.calibrate(model, images, 0)
    wait(images.device)
    return time.perf_counter() - start


def depth(case: str, repeats: int, device: torch.device) -> dict[str, Any]:
    """Seconds of a whole calibration against the depth of a CIFAR ResNet, in turn, the least of a few."""
    method = create("ptmq", {"iterations": DEPTH_ITERATIONS}, GROUPS.widths, GROUPS)
    blocks = get_backbone("resnet20").blocks
    rounds = few(repeats)
    images = random_images("cifar10", DEPTH_IMAGES).to(device)
    seconds = dict.fromkeys(DEPTHS, float("inf"))
    for _ in range(rounds):
        for layers in DEPTHS:
            model = random_model(partial(CifarResNet, layers), blocks, GROUPS.widths, device)
            seconds[layers] = min(seconds[layers], seconds_of(method, model, images))
    return {"iterations": DEPTH_ITERATIONS, "images": DEPTH_IMAGES, "seconds": seconds, "repeats": rounds}


def whole(case: str, repeats: int, device: torch.device) -> dict[str, Any]:
    """Hours of PTMQ's calibration of a network at the published iterations, worked out from two short ones.

    Seconds grow with the iterations by a straight line. So two calibrations give the seconds of one iteration of every
    block, and those of all that is done besides: features and step sizes. A CPU gets few images; they decide the
    seconds besides and the memory.
    """
    name = case.removeprefix("calibration-")
    backbone = get_backbone(name)
    groups = BitGroups(*backbone.groups.values())
    count, short = (PUBLISHED_IMAGES, (20, 220)) if device.type == "cuda" else (FEW_IMAGES, (1, 5))
    images = random_images(backbone.dataset, count).to(device)
    seconds = {}
    for iterations in short:
        method = create("ptmq", {"iterations": iterations}, groups.widths, groups)
        model = random_model(backbone.network, backbone.blocks, groups.widths, device)
        seconds[iterations] = seconds_of(method, model, images)
    fewer, more = short
    iteration = (seconds[more] - seconds[fewer]) / (more - fewer)
    besides = seconds[fewer] - fewer * iteration
    return {
        "backbone": name, "images": count, "seconds": seconds, "seconds_an_iteration": iteration,
        "seconds_besides": besides, "iterations": PUBLISHED_ITERATIONS,
        "hours": (besides + PUBLISHED_ITERATIONS * iteration) / 3600,
    }  # fmt: skip
