"""The files of a deployment: a calibrated model of a folder as ONNX, and the FP32 network that it is held against."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ptmq.api import load_model
from ptmq.common.errors import InputError
from ptmq.data import datasets
from ptmq.export.onnx_file import Exported, Normalization, export_onnx
from ptmq.export.skeleton import EXAMPLES, as_onnx
from ptmq.models.backbone import get_backbone
from ptmq.models.checkpoints import load_network


def export_folder(
    folder: Path, out: Path, width: str | None, uint8: bool, as_stored: bool = False, data_dir: str | None = None
) -> Exported:
    """Write the model of a folder as ONNX.

    uint8: images are bytes, and the backbone's normalisation is in the file · as_stored: so they are where the pixels
    of the model's dataset are bytes.
    """
    model, info = load_model(folder)
    backbone = info["model"]["backbone"]
    uint8 = uint8 or (as_stored and stored_as_bytes(info.get("run"), data_dir))
    if uint8 and backbone is None:
        raise InputError("--uint8 takes the normalisation of a registered backbone. Use ptmq.export_onnx otherwise.")
    return export_onnx(model, out, width, normalization=normalization_of(backbone) if uint8 else None)


def normalization_of(backbone: str) -> Normalization:
    """Mean and standard deviation of a backbone's images, in 0..1."""
    entry = get_backbone(backbone).complete()
    return entry.mean, entry.std


def stored_as_bytes(run: dict[str, Any] | None, data_dir: str | None) -> bool:
    """Whether the pixels of a run's dataset are bytes. Raises InputError for a model that no run made."""
    if run is None:
        raise InputError("--as-stored takes the dataset of the calibration, which this model does not name.")
    backbone = get_backbone(run["backbone"]).complete()
    images = datasets.load(run["dataset"], "train", datasets.data_folder(data_dir), backbone)
    return images.pixels(torch.tensor([0])).dtype == torch.uint8


def export_fp32(backbone: str, weights: Path, shape: tuple[int, ...], out: Path) -> None:
    """Write a floating-point network as ONNX; it takes prepared images (batch, *shape), float32."""
    write_fp32(load_network(backbone, weights).eval(), backbone, shape, out)


def write_fp32(network: Any, name: str, shape: Sequence[int], out: Path) -> None:
    """Write a network in evaluation mode as ONNX; name: for messages."""
    out.write_bytes(as_onnx(network, torch.zeros(EXAMPLES, *shape), name).SerializeToString())
