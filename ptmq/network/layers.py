"""A layer of a quantized network: it holds its weight and a quantizer, and computes with what that makes of it."""

import copy
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq.common.bits import FP
from ptmq.quantization.quantizer import Quantizer
from ptmq.quantization.weight_quantizer import RoundedWeightQuantizer

LAYERS = (nn.Conv2d, nn.Linear)  # what can be quantized
Layer = nn.Conv2d | nn.Linear
Own = TypeVar("Own", bound=Quantizer)


def convolution_of(layer: Layer) -> dict[str, Any] | None:
    """How a convolution moves over its input; None of a linear layer."""
    if isinstance(layer, nn.Conv2d):
        return {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}
    return None


class QuantizedLayer(nn.Module, Generic[Own]):
    """A convolution or linear layer that sees its weight (out, in, ...) through a quantizer.

    quantizer: a `WeightQuantizer`, or another that takes a weight · layer: its parameters become this layer's own.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: Layer, quantizer: Own):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.conv = convolution_of(layer)
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, ...) -> (batch, out, ...)."""
        weight = self.quantizer(self.weight)
        return F.linear(x, weight, self.bias) if self.conv is None else F.conv2d(x, weight, self.bias, **self.conv)

    @property
    def bits(self) -> int:
        """The width that is selected."""
        return self.quantizer.bits

    def set_bits(self, bits: int) -> None:
        """Select the weight's width."""
        self.quantizer.set_bits(bits)

    def weight_at(self: "RoundedLayer", bits: int) -> Tensor:
        """The weight as the network sees it at `bits`, of its shape."""
        return self.weight if bits == FP else self.quantizer.quantized(self.weight, bits)

    def search_step_sizes(self, search: str) -> None:
        """Set the weight's step sizes by `search`."""
        self.quantizer.search_step_sizes(self.weight, search)


RoundedLayer = QuantizedLayer[RoundedWeightQuantizer]  # of post-training quantization: its weight does not change


def frozen(layer: Layer) -> Layer:
    """A copy of a layer whose parameters do not learn, its weight laid out as convolutions run fastest."""
    copied = copy.deepcopy(layer).requires_grad_(False)
    layout = torch.channels_last if layer.weight.dim() == 4 else torch.contiguous_format  # like the features
    weight = layer.weight.detach().clone(memory_format=layout)
    copied.weight = nn.Parameter(weight, requires_grad=False)
    return copied
