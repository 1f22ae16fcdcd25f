"""AdaptiveBN alone: round to nearest, and re-estimate BatchNorm at every switch.

Nothing is learned and no label is needed, but a switch costs images and time: what multi-bit methods that share
BatchNorm pay, and PTMQ does not. Beside it the same network as it is, `no_recalibration`.
"""

from ptmq.methods.interface import Method, register
from ptmq.network.layers import QuantizedLayer
from ptmq.training.adaptive_bn import AdaptiveBNModel


@register
class AdaptiveBN(Method):
    """Round to nearest with BatchNorm re-estimated at every switch."""

    name = "adaptive_bn"

    def build(self, network, blocks):
        """The network with its BatchNorms, which are not folded here."""
        return AdaptiveBNModel(network, blocks, self.widths, self.settings, QuantizedLayer)
