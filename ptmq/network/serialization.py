"""Calibrated models on disk: model.safetensors and model.json in one folder; no pickle."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptmq.common.bits import BitWidth
from ptmq.common.errors import InputError
from ptmq.common.files import load_tensors, read_json, save_tensors, write_json
from ptmq.methods.interface import Method, create
from ptmq.models.backbones import get_backbone
from ptmq.network.model import MultiBitModel

TENSORS, DESCRIPTION = "model.safetensors", "model.json"


def save_model(folder: Path, model: nn.Module, backbone: str, method: Method, info: dict[str, Any]) -> None:
    """Write a model that `method` calibrated; `info` is kept in model.json beside what loading needs."""
    save_tensors(folder / TENSORS, model.state_dict(), {"backbone": backbone})
    shape = {"backbone": backbone, "widths": [str(w) for w in model.widths]}
    if isinstance(model, MultiBitModel):
        shape |= {"edge_bits": model.edge_bits, "softmax": model.softmax}
    else:
        shape |= {"method": method.name, "settings": asdict(method.settings)}
    write_json(folder / DESCRIPTION, {"model": shape, **info})


def load_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The calibrated model of a folder, ready to switch, and the content of its model.json.

    At every width it gives, bit for bit, the logits that the saved model gave. Raises InputError for missing
    or damaged files.
    """
    folder = Path(folder)
    info = read_json(folder / DESCRIPTION)
    try:
        shape = info["model"]
    except (KeyError, TypeError):
        raise InputError(f"file {str(folder / DESCRIPTION)!r} does not describe a calibrated model.") from None
    backbone = get_backbone(shape["backbone"])
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
        network = backbone.network()
    widths = [BitWidth.parse(width) for width in shape["widths"]]
    if "method" in shape:  # a model of the method's own
        model = create(shape["method"], shape["settings"], widths).build(network, backbone.blocks)
    else:
        model = MultiBitModel(network, backbone.blocks, widths, shape["edge_bits"], shape.get("softmax", False))
    tensors, _ = load_tensors(folder / TENSORS)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"model {str(folder)!r} does not fit backbone {shape['backbone']!r}: {error}") from None
    return model.eval().requires_grad_(False), info
