"""The network of a model as an ONNX graph in which layers and quantizers are symbols: recorded once for all widths."""

import contextlib
import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ptmq.common.errors import InputError
from ptmq.export.frozen import FrozenLayer, frozen, rebuilt
from ptmq.network.model import MultiBitModel

DOMAIN, LAYER, QUANTIZE = "ptmq", "Layer", "Quantize"
IMAGES, LOGITS, OPSET = "images", "logits", 21
EXAMPLES = 2  # images that the network is recorded with


class Symbol(nn.Module):
    """Stands for a layer or a quantizer; the output's shape is that of `module`."""

    def __init__(self, name: str, module: nn.Module):
        super().__init__()
        self.name, self.module = name, module
        self.operator = LAYER if isinstance(module, FrozenLayer) else QUANTIZE

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape -> a tensor of the module's output's shape."""
        shape = self.module(x).shape if self.operator == LAYER else x.shape
        attributes: dict[str, Any] = {"name": self.name, "dims": x.dim()}
        operator = f"{DOMAIN}::{self.operator}"
        return torch.onnx.ops.symbolic(operator, (x,), attributes, dtype=x.dtype, shape=shape, version=1)


def skeleton(model: MultiBitModel, name: str) -> Any:
    """The network as an `onnx.ModelProto` from `images` (batch, ...) to `logits` (batch, classes).

    Its nodes Layer and Quantize, of the domain ptmq, have a `name` by which `ptmq.export.frozen.frozen` knows them.
    name: the network's, in a message. Raises InputError where the network cannot be written as ONNX.
    """
    parts = frozen(model, model.widths[0])
    network = rebuilt(model, {key: Symbol(key, part) for key, part in parts.items()})
    return as_onnx(network, torch.zeros(EXAMPLES, *model.image_shape), name)


def as_onnx(network: nn.Module, example: Tensor, name: str) -> Any:
    """A network as an `onnx.ModelProto` from `images` (batch, ...) to `logits` (batch, classes).

    Raises InputError, with the network's name, where that cannot be done.
    """
    batch = ({0: torch.export.Dim("batch")},)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network, (example,), dynamo=True, dynamic_shapes=batch, opset_version=OPSET, verbose=False,
                input_names=[IMAGES], output_names=[LOGITS],
            )  # fmt: skip
    except Exception as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{name} cannot be written as ONNX: {told[0]}") from error
    assert program is not None
    return program.model_proto
