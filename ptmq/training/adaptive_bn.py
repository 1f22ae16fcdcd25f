"""The model of the methods that share BatchNorm between widths, and so re-estimate it at every switch (AdaptiveBN).

Every width has step sizes of its own; weights and BatchNorm parameters are shared. Statistics that one width has left
do not fit another.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ptmq.common.bits import FP
from ptmq.common.device import memory_format
from ptmq.data.images import Images
from ptmq.network.layers import Layer, QuantizedLayer
from ptmq.network.model import observe
from ptmq.network.place import QuantizationSpec
from ptmq.network.trace import NORMS
from ptmq.quantization.activation_quantizer import ActivationQuantizer
from ptmq.training.augmentation import augmented
from ptmq.training.model import TrainableModel

BN_BATCH, BN_BATCHES = 128, 100  # of training images that statistics are re-estimated on


class AdaptiveBNModel(TrainableModel):
    """A network with step sizes for every width.

    spec, to_layer: as for `TrainableModel`.
    """

    modes = ("no_recalibration", "")  # first as it was trained, before statistics are lost
    recalibrated = True

    def __init__(
        self,
        network: nn.Module,
        spec: QuantizationSpec,
        to_layer: Callable[[Layer, int | None], QuantizedLayer],
        example: Tensor | None = None,
    ):
        def to_quantizer(fixed: int | None) -> ActivationQuantizer:
            return ActivationQuantizer(spec.activation_bits, fixed)

        super().__init__(network, spec, to_layer, to_quantizer, example=example)

    def set_mode(self, mode: str) -> None:
        """Re-estimate BatchNorm at every switch (''), or not ('no_recalibration')."""
        self.recalibrated = mode == ""

    @property
    def learned_quantizers(self) -> list[ActivationQuantizer]:
        """Those of activations, and those of weights that are of the same kind."""
        every = [*(layer.quantizer for layer in self.layers), *self.quantizers]
        return [quantizer for quantizer in every if isinstance(quantizer, ActivationQuantizer)]

    @torch.no_grad()
    def search_step_sizes(self, images: Tensor, search: str, batch_size: int = 64) -> None:
        """Find all step sizes by `search`, activations on what the FP network gives for `images`."""
        for layer in self.layers:
            layer.search_step_sizes(search)
        self.set_bits(FP, FP)
        _, seen = observe(self, images, batch_size, self.quantizers)
        for quantizer, histogram in seen.items():
            quantizer.search_in(histogram, search)


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> int:
    """AdaptiveBN: re-estimate all BatchNorm statistics, from nothing, at the width that is selected.

    batches: images, (batch, ...) each, augmented as in training, where the statistics come from that the network's
    weights belong to; means and unbiased variances are averaged over them. Returns how many images they were.
    """
    norms = [module for module in network.modules() if isinstance(module, NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's cumulative average
        norm.train()
    images = 0
    for batch in batches:
        network(batch.contiguous(memory_format=memory_format(batch)))
        images += len(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return images


def recalibration_batches(count: int) -> Sequence[Tensor]:
    """Which of `count` training images statistics are re-estimated on, a batch each: the first of a fixed order.

    Only whole batches, unless there are fewer images than one.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: BN_BATCH * BN_BATCHES]
    whole = len(order) // BN_BATCH * BN_BATCH
    return order[: whole or len(order)].split(BN_BATCH)


def recalibration_images(train: Images, batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Batches of training images by their indices, each read when it is asked for; augmented alike at every call."""
    generator = torch.Generator().manual_seed(0)
    return (augmented(train, index, generator).to(device) for index in batches)
