"""Networks that are trained with their quantizers in place: BatchNorm stays a layer of its own.

What a layer and a quantizer are is the method's choice; where they stand is the same as in `ptmq.network.model`.
"""

import copy
from collections.abc import Callable, Iterable
from typing import TypeVar

from torch import Tensor, nn

from ptmq.common.bits import FP, FULL_PRECISION, BitWidth
from ptmq.common.errors import InputError
from ptmq.network.cut import assign_units, require_equal
from ptmq.network.graph.coverage import rows_of
from ptmq.network.layers import Layer, QuantizedLayer
from ptmq.network.model import Switchable, known_width
from ptmq.network.place import QuantizationSpec, quantize_graph
from ptmq.network.recording.prepare import example_for
from ptmq.network.trace import NORMS, trace
from ptmq.quantization.quantizer import Quantizer

Module = TypeVar("Module", bound=nn.Module)


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

    network: a trained FP network; it is not changed · spec, example: as for `ptmq.network.model.MultiBitModel` ·
    to_layer, to_quantizer: as for `ptmq.network.place.quantize_graph` ·
    norm_per_width: every BatchNorm becomes a SwitchableNorm.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: QuantizationSpec,
        to_layer: Callable[[Layer, int | None], QuantizedLayer],
        to_quantizer: Callable[[int | None], Quantizer],
        norm_per_width: bool = False,
        example: Tensor | None = None,
    ):
        super().__init__()
        self.spec, self.widths = spec, tuple(spec.widths)
        example = example_for(network, example)
        self.image_shape = tuple(example.shape[1:])
        self.layers: list[QuantizedLayer] = []
        self.quantizers: list[Quantizer] = []
        graph = trace(network, example)
        require_equal(network, [("network", graph)], example)
        quantize_graph(
            graph,
            assign_units(graph, spec.blocks),
            spec,
            lambda layer, fixed: _kept(self.layers, to_layer(layer, fixed)),
            lambda fixed: _kept(self.quantizers, to_quantizer(fixed)),
        )
        self.rows = rows_of(graph, spec)
        norms = [(name, module) for name, module in graph.named_modules() if isinstance(module, NORMS)]
        if not norms:
            raise InputError(
                f"{type(network).__name__} has no BatchNorm to re-estimate, or to keep one of for every width. Leave "
                "the backbone out for this method (backbones: [...])."
            )
        self.switched_norms: list[SwitchableNorm] = []
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


def _kept(modules: list[Module], module: Module) -> Module:
    """The module, noted in a list."""
    modules.append(module)
    return module
