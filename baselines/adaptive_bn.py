"""AdaptiveBN alone: round to nearest, and re-estimate BatchNorm at every switch.

Nothing is learned and no label is needed, but a switch costs images and time: what multi-bit methods that share
BatchNorm pay, and PTMQ does not. Beside it the same network as it is, `no_recalibration`.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ptmq.methods.interface import Method, register
from ptmq.network.layers import Layer, QuantizedLayer, frozen
from ptmq.quantization.weight_quantizer import RoundedWeightQuantizer
from ptmq.training.adaptive_bn import AdaptiveBNModel


@register
class AdaptiveBN(Method):
    """Round to nearest with BatchNorm re-estimated at every switch."""

    name = "adaptive_bn"
    style = ("AdaptiveBN", "#7570B3", "<", (0, (2, 2)))

    def build(
        self, network: nn.Module, blocks: Sequence[str] | None, example: Tensor | None = None, **conversion: Any
    ) -> AdaptiveBNModel:
        """The network with its BatchNorms, which are not folded here."""
        spec = self.spec(blocks, **conversion)

        def to_layer(layer: Layer, fixed: int | None) -> QuantizedLayer:
            quantizer = RoundedWeightQuantizer(layer.weight.shape, spec.weight_bits, fixed)
            return QuantizedLayer(frozen(layer), quantizer)

        return AdaptiveBNModel(network, spec, to_layer, example)
