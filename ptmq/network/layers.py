"""A layer of a quantized network: it holds its weight and a quantizer, and computes with what that makes of it."""

import copy
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq.common.bits import FP, BitWidth
from ptmq.common.errors import InputError
from ptmq.quantization.quantizer import ChannelCorrection, Quantizer
from ptmq.quantization.weight_quantizer import GridWeightQuantizer

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

    quantizer: a `WeightQuantizer`, or another that takes a weight · layer: its parameters become this layer's own ·
    correction: of its output channels at every width, or None.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: Layer, quantizer: Own, correction: ChannelCorrection | None = None):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.conv = convolution_of(layer)
        self.quantizer, self.correction = quantizer, correction

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, ...) -> (batch, out, ...)."""
        weight, bias = self.quantizer(self.weight), self.bias
        if self.correction is not None:
            weight, bias = self.correction(weight, bias)
        return F.linear(x, weight, bias) if self.conv is None else F.conv2d(x, weight, bias, **self.conv)

    @property
    def bits(self) -> int:
        """The width that is selected."""
        return self.quantizer.bits

    def set_bits(self, bits: int) -> None:
        """Select the weight's width."""
        self.quantizer.set_bits(bits)

    def set_width(self, width: BitWidth) -> None:
        """Select the weight's width, and the correction for weights and activations of that width."""
        if width.weight == FP and self.weight is None:
            raise InputError(
                "this model holds integer codes and no floating-point weights, so it cannot run at 32 bits. Take one "
                "of its widths, or the network that it was made of."
            )
        self.set_bits(width.weight)
        if self.correction is not None:
            self.correction.select(width)

    def weight_at(self: "GridLayer", bits: int) -> Tensor:
        """The weight on its grid at `bits`, of its shape: as the network sees it, but for the correction's gain."""
        return self.weight if bits == FP else self.quantizer.quantized(self.weight, bits)

    def search_step_sizes(self, search: str) -> None:
        """Set the weight's step sizes by `search`."""
        self.quantizer.search_step_sizes(self.weight, search)


GridLayer = QuantizedLayer[GridWeightQuantizer]  # of post-training quantization: its weight does not change


def frozen(layer: Layer) -> Layer:
    """A copy of a layer whose parameters do not learn, its weight laid out as convolutions run fastest."""
    copied = copy.deepcopy(layer).requires_grad_(False)
    layout = torch.channels_last if layer.weight.dim() == 4 else torch.contiguous_format  # like the features
    weight = layer.weight.detach().clone(memory_format=layout)
    copied.weight = nn.Parameter(weight, requires_grad=False)
    return copied
