"""The model of the methods that share BatchNorm between widths, and so re-estimate it at every switch (AdaptiveBN).

Every width has a step size of its own for every weight and activation, per tensor; weights and BatchNorm parameters are
shared. Statistics that one width has left do not fit another.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ptmq.bits import BitWidth
from ptmq.features import memory_format
from ptmq.layers import ActivationQuantizer
from ptmq.multibit import observe
from ptmq.trainable import LearnedStepLayer, TrainableModel

BN_BATCH, BN_BATCHES = 128, 100  # of training images that statistics are re-estimated on


class AdaptiveBNModel(TrainableModel):
    """A network with a step size for every width. edge_bits: as for `ptmq.multibit.MultiBitModel`."""

    modes = ("no_recalibration", "")  # first as it was trained, before statistics are lost
    recalibrated = True

    def __init__(self, network: nn.Module, blocks: Sequence[str], widths: Sequence[BitWidth], edge_bits: int):
        weights, activations = [w.weight for w in widths], [w.activation for w in widths]
        super().__init__(
            network,
            blocks,
            widths,
            lambda layer, at_edge: LearnedStepLayer(layer, weights, edge_bits if at_edge else None),
            lambda at_edge: ActivationQuantizer(activations, edge_bits if at_edge else None),
        )

    def set_mode(self, mode: str) -> None:
        """Re-estimate BatchNorm at every switch (''), or not ('no_recalibration')."""
        self.recalibrated = mode == ""

    @property
    def all_quantizers(self) -> list[ActivationQuantizer]:
        """Those of weights and those of activations."""
        return [layer.quantizer for layer in self.layers] + self.quantizers

    @torch.no_grad()
    def search_steps(self, images: Tensor, search: str, batch_size: int = 64) -> None:
        """Find all step sizes by `search`, activations on what the FP network gives for `images`."""
        for layer in self.layers:
            layer.quantizer.search_steps(layer.weight, search)
        _, seen = observe(self, images, batch_size)
        for quantizer, values in seen.items():
            quantizer.search_steps(values, search)


@torch.no_grad()
def recalibrate(model: TrainableModel, batches: Iterable[Tensor]) -> int:
    """AdaptiveBN: re-estimate all BatchNorm statistics at the selected width, from nothing.

    batches: images, (batch, ...) each; means and unbiased variances are averaged over them. Returns how many images
    they were.
    """
    norms = list(model.norms)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's cumulative average
        norm.train()
    images = 0
    for batch in batches:
        model(batch.contiguous(memory_format=memory_format(batch)))
        images += len(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return images
