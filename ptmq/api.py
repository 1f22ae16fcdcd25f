"""Calibrated models of the suite: saved with all that opens them again, and opened."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptmq.common.bits import BitWidth
from ptmq.methods.interface import Method, create
from ptmq.models.backbone import get_backbone
from ptmq.network import serialization
from ptmq.network.model import MultiBitModel, Switchable
from ptmq.network.place import QuantizationSpec


def save_model(folder: Path, model: Switchable, backbone: str, method: Method, info: dict[str, Any]) -> None:
    """Write a model that `method` calibrated; `info` is kept in model.json beside what loading needs."""
    shape: dict[str, Any] = {"backbone": backbone, "widths": [str(width) for width in model.widths]}
    if isinstance(model, MultiBitModel):
        spec = model.spec
        shape |= {"edge_bits": spec.edge_bits, "softmax": spec.quantize_softmax}
        shape |= {"anchor": spec.anchor, "correction": spec.correction}
    else:
        shape |= {"method": method.name, "settings": asdict(method.settings)}
    serialization.save_model(folder, model, shape, info)


def load_model(folder: Path | str) -> tuple[Switchable, dict[str, Any]]:
    """The calibrated model of a folder, ready to switch, and the content of its model.json.

    At every width it gives, bit for bit, the logits that the saved model gave. Raises InputError for missing
    or damaged files.
    """
    return serialization.load_model(Path(folder), _build)


def _build(shape: dict[str, Any]) -> Switchable:
    """The model that model.json describes, with nothing calibrated."""
    backbone = get_backbone(shape["backbone"])
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
        network: nn.Module = backbone.network()
    widths = [BitWidth.parse(width) for width in shape["widths"]]
    if "method" in shape:  # a model of the method's own
        return create(shape["method"], shape["settings"], widths).build(network, backbone.blocks)
    more = shape.get("softmax", False), shape.get("anchor", 0), shape.get("correction", "none")
    spec = QuantizationSpec(backbone.blocks, widths, shape["edge_bits"], *more)
    return MultiBitModel(network, spec)
