"""Any-Precision DNN: train one network for all widths, with BatchNorms of its own for every width.

Paper: https://arxiv.org/abs/1911.07346. Weights and activations are quantized as in DoReFa; every iteration runs all
widths, the highest with the labels, every other with the output of the next higher one as soft labels, and sums their
gradients. First and last layer stay in floating point, and so does what enters the last layer.

At run time one code a weight is stored, that of the highest width, and the lower widths drop its last bits. The
released code quantizes the floating-point weight anew at every width instead, which gives other codes: both are
reported, as they were trained and `truncated`.
Departures: the network is the backbone of the suite (ReLU after BatchNorm) and starts from its trained weights, where
the publication trains a pre-activation network of its own from nothing; floating point is not among the widths.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ptmq.common.bits import FP, BitGroups, BitWidth
from ptmq.common.errors import InputError
from ptmq.methods.interface import Task, register
from ptmq.methods.label_training import SCHEDULES_FOR_ALL_WIDTHS, TrainedMethod, soft_cross_entropy
from ptmq.network.layers import QuantizedLayer
from ptmq.network.model import Switchable
from ptmq.network.place import QuantizationSpec
from ptmq.network.trace import input_of, module_of, relu_of
from ptmq.quantization.fake_quantization import largest_code
from ptmq.quantization.quantizer import Quantizer
from ptmq.quantization.weight_quantizer import WeightQuantizer
from ptmq.training.model import TrainableModel

EPSILON = torch.finfo(torch.float32).eps


def rounded(x: Tensor, bits: int) -> Tensor:
    """x in 0..1 rounded to the nearest of 2^bits levels, with the gradient of x."""
    return x + (torch.round(x * largest_code(bits)) / largest_code(bits) - x).detach()


def normalised(weight: Tensor) -> Tensor:
    """tanh(w) / (2 max|tanh(w)|) + 1/2: the weight in 0..1, of its shape."""
    squashed = weight.tanh()
    return squashed / (2 * squashed.abs().max()) + 0.5


def scale_of(weight: Tensor) -> Tensor:
    """Mean |w|, a scalar without gradient."""
    return weight.abs().mean().detach()


def weight_codes(weight: Tensor, bits: int) -> Tensor:
    """Integer codes 0 .. 2^bits - 1 of a weight, uint8, of its shape."""
    return torch.round(normalised(weight) * largest_code(bits)).to(torch.uint8)


def decode(codes: Tensor, bits: int, scale: Tensor) -> Tensor:
    """The weight of `codes` at `bits`: (2 q / (2^bits - 1) - 1) times the scale."""
    return (2 * codes / largest_code(bits) - 1) * scale


def quantize_weight(weight: Tensor, bits: int) -> Tensor:
    """DoReFa's weight at `bits`, of the weight's shape; at 32 bits the normalised weight itself."""
    x = normalised(weight)
    if bits != FP:
        x = rounded(x, bits)
    return (2 * x - 1) * scale_of(weight)


class _Activation(torch.autograd.Function):
    """Clipped to 0..1 and rounded, with the gradient of the clipping; few passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1).mul_(largest_code(bits)).round_().div_(largest_code(bits))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors  # the bounds belong to the range, and this operation excludes its own
        return torch.ops.aten.hardtanh_backward(grad, x, -EPSILON, 1 + EPSILON), None


def quantize_activation(x: Tensor, bits: int) -> Tensor:
    """DoReFa's activation at `bits`: clipped to 0..1 and rounded; at 32 bits a ReLU."""
    if bits == FP:
        return x.relu()
    return _Activation.apply(x, bits)


class DoReFaWeightQuantizer(WeightQuantizer):
    """DoReFa's weights; at an edge in floating point."""

    def __init__(self, widths: Sequence[int], at_edge: bool):
        super().__init__()
        self.at_edge, self.highest = at_edge, max(widths)
        self.widths = [] if at_edge else sorted(widths)
        self.codes: Tensor | None = None  # of the highest width, where lower ones are made by dropping bits of them

    def quantized(self, weight: Tensor, bits: int) -> Tensor:
        """The weight at `bits`, quantized anew or cut from the codes."""
        if self.at_edge:
            return weight
        if self.codes is None:
            return quantize_weight(weight, bits)
        codes = self.codes >> (self.highest - bits)
        return decode(codes.to(weight.dtype), bits, scale_of(weight))


class AnyPrecisionActivation(Quantizer):
    """DoReFa's activation quantizer; at an edge it passes its input on."""

    def __init__(self, at_edge: bool):
        super().__init__()
        self.at_edge = at_edge

    def forward(self, x: Tensor) -> Tensor:
        return x if self.at_edge else quantize_activation(x.float(), self.bits)  # bfloat16 is too coarse for 8 bits


class AnyPrecisionModel(TrainableModel):
    """The trained network with its two ways to a lower width."""

    modes = ("", "truncated")

    def __init__(self, network: nn.Module, spec: QuantizationSpec, example: Tensor | None = None):
        super().__init__(
            network,
            spec,
            lambda layer, fixed: QuantizedLayer(layer, DoReFaWeightQuantizer(spec.weight_bits, fixed is not None)),
            lambda fixed: AnyPrecisionActivation(fixed is not None),
            norm_per_width=True,
            example=example,
        )
        for node in self.graph.graph.nodes:
            quantizer = module_of(self.graph, node)
            if isinstance(quantizer, AnyPrecisionActivation) and relu_of(self.graph, input_of(node)) is None:
                raise InputError(
                    f"any_precision clips to 0..1 what enters a layer, but what {str(node.args[0])!r} gives has both "
                    "signs. Leave the backbone out for this method (backbones: [...])."
                )

    def set_mode(self, mode: str) -> None:
        """Quantize every weight anew ('') or drop bits of the code of the highest width ('truncated')."""
        for layer in self.layers:
            quantizer = layer.quantizer
            quantizer.codes = weight_codes(layer.weight, quantizer.highest) if mode == "truncated" else None


@register
class AnyPrecision(TrainedMethod):
    """Training for all widths with BatchNorms of their own and soft labels from the next higher width (DoReFa)."""

    name = "any_precision"
    style = ("Any-Precision", "#A6761D", "h", (0, (6, 2)))
    schedules = SCHEDULES_FOR_ALL_WIDTHS

    def __init__(self, settings: dict[str, Any], widths: Sequence[BitWidth], groups: BitGroups | None = None):
        super().__init__(settings, widths, groups)
        if FP in {bits for width in self.widths for bits in (width.weight, width.activation)}:
            raise InputError(
                f"any_precision trains integer widths. Got {', '.join(map(str, self.widths))}. Leave out those with 32."
            )

    def build(
        self, network: nn.Module, blocks: Sequence[str] | None, example: Tensor | None = None, **conversion: Any
    ) -> AnyPrecisionModel:
        """The network with DoReFa's layers."""
        return AnyPrecisionModel(network, QuantizationSpec(blocks, self.widths, **conversion), example)

    def fit(self, task: Task) -> tuple[Switchable, dict[str, Any]]:
        """Train it."""
        model = self.built(task)
        return model, self.train(model, task)

    def losses(self, model: Any, x: Tensor, y: Tensor, generator: torch.Generator) -> Iterable[Tensor]:
        """Labels at the highest width; at every other the output of the next higher one (recursive supervision)."""
        target = None
        for width in sorted(self.widths, reverse=True):
            model.set_bits(width.weight, width.activation)
            logits = model(x)
            yield nn.functional.cross_entropy(logits, y) if target is None else soft_cross_entropy(logits, target)
            target = logits.detach().softmax(1)
