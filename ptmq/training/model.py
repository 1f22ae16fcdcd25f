"""Networks that are trained with their quantizers in place: BatchNorm stays a layer of its own.

What a layer and a quantizer are is the method's choice; where they stand is the same as in `ptmq.network.model`.
"""

import copy
from collections.abc import Callable, Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ptmq.common.bits import FP, FULL_PRECISION, BitWidth
from ptmq.common.errors import InputError
from ptmq.network.graph import NORMS, assign_units, calls, quantize_graph, trace
from ptmq.network.layers import ActivationQuantizer, convolution_of, run_layer
from ptmq.network.model import Switchable, known_width


class TrainableLayer(nn.Module):
    """A convolution or linear layer whose FP weight is trained, and quantized anew at every call.

    Subclasses give `quantized(bits)`, of the weight's shape, through which gradients reach the weight.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.conv = convolution_of(layer)
        self.bits = FP

    def quantized(self, bits: int) -> Tensor:
        """The weight as the network sees it at `bits`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.bits == FP else self.quantized(self.bits)
        return run_layer(x, weight, self.bias, self.conv)

    def set_bits(self, bits: int) -> None:
        """Select the weight's width."""
        self.bits = bits


class LearnedStepLayer(TrainableLayer):
    """A layer whose weight is fake-quantized per tensor, with a learned step size for every width (LSQ)."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, widths: Sequence[int], fixed: int | None = None):
        super().__init__(layer)
        self.quantizer = ActivationQuantizer(widths, fixed)

    def quantized(self, bits: int) -> Tensor:
        self.quantizer.set_bits(bits)
        return self.quantizer(self.weight)

    def search_steps(self, search: str) -> None:
        """Set the step size and zero point of every width by `search`."""
        self.quantizer.search_steps(self.weight, search)


class SwitchableNorm(nn.Module):
    """A BatchNorm with parameters and statistics of its own for every width."""

    def __init__(self, norm: nn.Module, widths: Iterable[BitWidth]):
        super().__init__()
        self.norms = nn.ModuleDict({str(width): copy.deepcopy(norm) for width in widths})
        self.selected = next(iter(self.norms))

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[self.selected](x)

    def set_bits(self, width: BitWidth) -> None:
        """Select a width; floating point takes the statistics of the highest."""
        self.selected = str(width) if str(width) in self.norms else list(self.norms)[-1]


class TrainableModel(Switchable):
    """A network with layers and quantizers of a method's choice: (batch, ...) images -> (batch, classes) logits.

    network: a trained FP network that torch.fx can trace; it is not changed · blocks, widths: as for
    `ptmq.network.model.MultiBitModel` · to_layer, to_quantizer: as for `ptmq.network.graph.quantize_graph` · norm_per_width: every
    BatchNorm becomes a SwitchableNorm · softmax: quantize the output of softmax, too.
    """

    def __init__(
        self,
        network: nn.Module,
        blocks: Sequence[str],
        widths: Sequence[BitWidth],
        to_layer: Callable[[nn.Module, bool], nn.Module],
        to_quantizer: Callable[[bool], nn.Module],
        norm_per_width: bool = False,
        softmax: bool = False,
    ):
        super().__init__()
        self.widths = tuple(sorted(widths))
        self.layers: list[nn.Module] = []
        self.quantizers: list[nn.Module] = []
        graph = trace(copy.deepcopy(network))
        quantize_graph(
            graph,
            assign_units(graph, blocks),
            lambda layer, at_edge: _kept(self.layers, to_layer(layer, at_edge)),
            lambda at_edge: _kept(self.quantizers, to_quantizer(at_edge)),
            softmax,
        )
        norms = [(name, module) for name, module in graph.named_modules() if isinstance(module, NORMS)]
        if not norms or any(calls(graph, node, functions=[F.batch_norm]) for node in graph.graph.nodes):
            raise InputError(
                f"{type(network).__name__} has no BatchNorm to re-estimate, or to keep one of for every width, or has "
                "some that are no layer of their own. Leave the backbone out for this method (backbones: [...])."
            )
        self.switched_norms: list[nn.Module] = []
        if norm_per_width:
            for name, norm in norms:
                graph.set_submodule(name, _kept(self.switched_norms, SwitchableNorm(norm, self.widths)))
        self.graph = graph
        self.set_bits(FP, FP)

    def forward(self, x: Tensor) -> Tensor:
        return self.graph(x)

    def set_bits(self, weight: int, activation: int) -> None:
        width = known_width(self.widths, weight, activation)
        if self.switched_norms and width not in (*self.widths, FULL_PRECISION):
            raise InputError(f"width {width} was not trained. Widths: {', '.join(map(str, self.widths))}.")
        for layer in self.layers:
            layer.set_bits(weight)
        for quantizer in self.quantizers:
            quantizer.set_bits(activation)
        for norm in self.switched_norms:
            norm.set_bits(width)


def _kept(modules: list[nn.Module], module: nn.Module) -> nn.Module:
    """The module, noted in a list."""
    modules.append(module)
    return module
