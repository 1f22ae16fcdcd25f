"""Calibrated models on disk: model.safetensors and model.json in one folder; no pickle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ptmq.common.errors import InputError
from ptmq.common.files import load_tensors, read_json, save_tensors, write_json
from ptmq.network.model import Switchable

TENSORS, DESCRIPTION = "model.safetensors", "model.json"


def save_model(folder: Path, model: nn.Module, shape: dict[str, Any], info: dict[str, Any]) -> None:
    """Write a model. shape: what building it anew needs · info: what model.json keeps beside that."""
    save_tensors(folder / TENSORS, model.state_dict(), {"backbone": shape["backbone"]})
    write_json(folder / DESCRIPTION, {"model": shape, **info})


def load_model(folder: Path, build: Callable[[dict[str, Any]], Switchable]) -> tuple[Switchable, dict[str, Any]]:
    """The model of a folder, ready to switch, and the content of its model.json.

    build(shape): a model with nothing calibrated. At every width the loaded one gives, bit for bit, the logits that the
    saved one gave. Raises InputError for missing or damaged files.
    """
    info = read_json(folder / DESCRIPTION)
    if not isinstance(info, dict) or "model" not in info:
        raise InputError(f"file {str(folder / DESCRIPTION)!r} does not describe a calibrated model.")
    model = build(info["model"])
    tensors, _ = load_tensors(folder / TENSORS)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"model {str(folder)!r} does not fit {owner(info['model'])}: {error}") from None
    return model.eval().requires_grad_(False), info


def owner(shape: dict[str, Any]) -> str:
    """Whose model it is, in a message."""
    return f"backbone {shape['backbone']!r}" if shape.get("backbone") else f"network {shape.get('network')}"
