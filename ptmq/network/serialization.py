"""Calibrated models on disk: model.safetensors and model.json in one folder; no pickle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ptmq.common.errors import InputError
from ptmq.common.files import load_tensors, read_json, save_tensors, write_json
from ptmq.network.layers import QuantizedLayer
from ptmq.network.model import Switchable
from ptmq.quantization.weight_quantizer import GridWeightQuantizer

TENSORS, DESCRIPTION = "model.safetensors", "model.json"


def save_model(folder: Path, model: nn.Module, shape: dict[str, Any], info: dict[str, Any]) -> None:
    """Write a model. shape: what building it anew needs · info: what model.json keeps beside that."""
    save_tensors(folder / TENSORS, stored(model), {"backbone": shape["backbone"]})
    write_json(folder / DESCRIPTION, {"model": shape, **info})


def standing_alone(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The layers, by name, whose integer codes need no floating-point weight."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLayer)}
    return {
        name: layer
        for name, layer in layers.items()
        if isinstance(layer.quantizer, GridWeightQuantizer) and layer.quantizer.stands_alone
    }


def stored(model: nn.Module) -> dict[str, Tensor]:
    """What is written of a model: its state, but for weights that integer codes stand for."""
    needless = {f"{name}.weight" for name in standing_alone(model)}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in needless}


def load_model(folder: Path, build: Callable[[dict[str, Any]], Switchable]) -> tuple[Switchable, dict[str, Any]]:
    """The model of a folder, ready to switch, and the content of its model.json.

    build(shape): a model with nothing calibrated. At every width the loaded one gives, bit for bit, the logits that the
    saved one gave. Raises InputError for missing or damaged files.
    """
    info = read_json(folder / DESCRIPTION)
    if not isinstance(info, dict) or "model" not in info:
        raise InputError(f"file {str(folder / DESCRIPTION)!r} does not describe a calibrated model.")
    model = build(info["model"])
    for layer in (coded := standing_alone(model)).values():
        layer.register_parameter("weight", None)
    tensors, _ = load_tensors(folder / TENSORS)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"model {str(folder)!r} does not fit {owner(info['model'])}: {error}") from None
    if coded:  # it was built at its floating-point width, which it does not have
        model.set_bits(model.widths[-1].weight, model.widths[-1].activation)
    return model.eval().requires_grad_(False), info


def owner(shape: dict[str, Any]) -> str:
    """Whose model it is, in a message."""
    return f"backbone {shape['backbone']!r}" if shape.get("backbone") else f"network {shape.get('network')}"
