"""A layer of a quantized network: it holds its weight and a quantizer, and computes with what that makes of it."""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq.common.bits import FP, BitWidth
from ptmq.common.errors import InputError
from ptmq.quantization.activation_quantizer import ActivationQuantizer
from ptmq.quantization.quantizer import ChannelCorrection, Quantizer
from ptmq.quantization.weight_quantizer import GridWeightQuantizer

CONVOLUTIONS: dict[type, Any] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
TRANSPOSED: dict[type, Any] = {
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)  # what can be quantized
FEW_CHANNELS = 16  # see `is_pixelwise`
Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear
Own = TypeVar("Own", bound=Quantizer)


class Computation(Protocol):
    """What a layer does with its input, its weight (out, in, ...) and its bias (out,)."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...


def moves_of(layer: Layer) -> dict[str, Any]:
    """How a convolution moves over its input; empty for a linear layer."""
    if isinstance(layer, nn.Linear):
        return {}
    return {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}


def computation_of(layer: Layer) -> Computation:
    """What a layer computes."""
    how = moves_of(layer)
    if isinstance(layer, nn.Linear):
        return cast(Computation, F.linear)
    if is_pixelwise(layer):
        return partial(_pixelwise, layer.stride, layer.groups)  # type: ignore[arg-type]
    if type(layer) in CONVOLUTIONS:
        return partial(CONVOLUTIONS[type(layer)], **how)
    function = partial(TRANSPOSED[type(layer)], output_padding=layer.output_padding, **how)
    return partial(_transposed, function, layer.groups)


def is_pixelwise(layer: Layer) -> bool:
    """Whether a convolution skips pixels and reads few channels of each of the others.

    oneDNN's weight gradient of such a convolution writes beyond its memory where the channels lie last (torch 2.11:
    F.conv2d(x, w, stride=2) with x (2, 3, 224, 224) and w (48, 3, 1, 1)).
    """
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1) != layer.stride
        and layer.padding == (0, 0)
        and layer.in_channels < FEW_CHANNELS
    )


def _pixelwise(stride: tuple[int, int], groups: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same convolution on the pixels that it reads."""
    return F.conv2d(x[..., :: stride[0], :: stride[1]].clone(), weight, bias, groups=groups)


def _transposed(function: Any, groups: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return function(x, swapped(weight, groups), bias)


def swapped(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight (out, in / groups, ...) as (in, out / groups, ...), and back."""
    apart = weight.unflatten(0, (groups, -1)).transpose(1, 2)  # (groups, in / groups, out / groups, ...)
    return apart.flatten(0, 1)


def weight_of(layer: Layer) -> nn.Parameter:
    """The weight with its output channels first, (out, in / groups, ...)."""
    if type(layer) in TRANSPOSED:
        weight = swapped(layer.weight.detach(), layer.groups).contiguous()  # type: ignore[arg-type]
        return nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    return cast(nn.Parameter, layer.weight)


@dataclass(frozen=True)
class BiasGrid:
    """The grid of a bias in an integer kernel: multiples of the product of the two step sizes, of input and weight.

    entering: quantizes what enters the layer.
    """

    entering: ActivationQuantizer

    def step_size(self, layer: "QuantizedLayer") -> Tensor | None:
        """Step size of each output channel at the selected width, (out,); None where that is floating point."""
        quantizer: Any = layer.quantizer
        key = str(self.entering.fixed or layer.activation_bits)
        if FP in (quantizer.bits, layer.activation_bits) or key not in self.entering.step:
            return None
        step = quantizer.grid(quantizer.bits)[0].flatten() * self.entering.step[key]
        return step if layer.correction is None else step * layer.correction.factor()

    def __call__(self, layer: "QuantizedLayer", bias: Tensor | None) -> Tensor | None:
        """The bias (out,) that the kernel adds; a gradient passes as if it were not rounded."""
        step = None if bias is None else self.step_size(layer)
        if bias is None or step is None:
            return bias
        with torch.no_grad():
            moved = torch.round(bias / step) * step - bias
        return bias + moved


class QuantizedLayer(nn.Module, Generic[Own]):
    """A convolution or linear layer that sees its weight (out, in, ...) through a quantizer.

    quantizer: a `WeightQuantizer`, or another that takes a weight · layer: its parameters become this layer's own ·
    correction: of its output channels at every width, or None · bias_grid: where an integer kernel computes it.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: Layer, quantizer: Own, correction: ChannelCorrection | None = None):
        super().__init__()
        self.weight, self.bias = weight_of(layer), layer.bias
        self.kind, self.shape = type(layer).__name__, self.weight.shape
        self.moves = moves_of(layer)
        self.computation = computation_of(layer)
        self.quantizer, self.correction = quantizer, correction
        self.bias_grid: BiasGrid | None = None
        self.activation_bits = FP  # of what enters

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, ...) -> (batch, out, ...)."""
        weight, bias = self.quantizer(self.weight), self.bias
        if self.correction is not None:
            weight, bias = self.correction(weight, bias)
        if self.bias_grid is not None:
            bias = self.bias_grid(self, bias)
        return self.computation(x, weight, bias)

    def multiplications(self, x: Tensor, out: Tensor) -> int:
        """How many it takes to make `out` of x, both (batch, ...), for the whole batch."""
        if "Transpose" in self.kind:  # every input value meets the weights of all output channels of its group
            return x.numel() * self.shape.numel() // x.shape[1]
        return out.numel() * self.shape[1:].numel()

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
        self.activation_bits = width.activation
        if self.correction is not None:
            self.correction.select(width)

    def weight_at(self: "GridLayer", bits: int) -> Tensor:
        """The weight on its grid at `bits`, of its shape: as the network sees it, but for the correction's gain."""
        return self.weight if bits == FP else self.quantizer.quantized(self.weight, bits)

    def search_step_sizes(self, search: str) -> None:
        """Set the weight's step sizes by `search`; one that is never quantized has none."""
        if not getattr(self.quantizer, "widths", True):
            return
        self.quantizer.search_step_sizes(self.weight, search)


GridLayer = QuantizedLayer[GridWeightQuantizer]  # of post-training quantization: its weight does not change


def frozen(layer: Layer) -> Layer:
    """A copy of a layer whose parameters do not learn, its weight laid out as convolutions run fastest."""
    copied = copy.deepcopy(layer).requires_grad_(False)
    layout = torch.channels_last if layer.weight.dim() == 4 else torch.contiguous_format  # like the features
    weight = layer.weight.detach().clone(memory_format=layout)
    copied.weight = nn.Parameter(weight, requires_grad=False)
    return copied
