"""RobustQuant: fine-tune until the weights are spread uniformly, then round to nearest at any width.

Paper: https://arxiv.org/abs/2002.07686. KURE adds λ times the mean over the convolutions, the first left out, of
(kurtosis - 1.8)^2 to the cross-entropy; 1.8 is the kurtosis of a uniform distribution, which a quantizer's step size
disturbs least. The network stays in floating point. It is then quantized without further learning.
Departure: step sizes are searched as for every method of the suite, where the publication uses LAPQ.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq.common.errors import InputError, require
from ptmq.methods.interface import Task, register
from ptmq.methods.label_training import TrainedMethod, TrainedStepSizeSettings
from ptmq.models.backbone import Training
from ptmq.network.model import Switchable

TARGET = 1.8


def kurtosis(weight: Tensor) -> Tensor:
    """Mean of ((w - mean) / standard deviation)^4 of all values, the deviation unbiased; a scalar."""
    return ((weight - weight.mean()) / weight.std()).pow(4).mean()


def regularized(network: nn.Module) -> list[Tensor]:
    """Weights of all convolutions but the first."""
    return [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)][1:]


def mean_kurtosis(network: nn.Module) -> float:
    """Mean kurtosis of what is regularized."""
    return fmean(float(kurtosis(weight.detach())) for weight in regularized(network))


@dataclass(frozen=True)
class RobustQuantSettings(TrainedStepSizeSettings):
    """λ of the kurtosis regularizer."""

    kurtosis_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.kurtosis_weight >= 0, "kurtosis_weight", "0 or more", self.kurtosis_weight)


@register
class RobustQuant(TrainedMethod):
    """Fine-tuning with kurtosis regularization, then round to nearest (KURE)."""

    name = "robustquant"
    style = ("RobustQuant", "#66A61E", "p", (0, (4, 2, 1, 2)))
    Settings = RobustQuantSettings
    schedules: ClassVar = {
        # of the released code for ImageNet's ResNet-18; it adds no warm-up
        "paper": Training(epochs=90, batch_size=256, optimizer="sgd", lr=1e-3, weight_decay=1e-4, decay="step",
                          drops=(1 / 3, 2 / 3), warmup=0.0, amp=True),
        # a rate high enough that the network learns anew under the regularizer, instead of merely putting up with it
        "short": Training(epochs=10, batch_size=128, optimizer="sgd", lr=5e-2, weight_decay=5e-4, warmup=0.0, amp=True),
    }  # fmt: skip

    def fit(self, task: Task) -> tuple[Switchable, dict[str, Any]]:
        """Fine-tune the network, then round it to nearest."""
        if not regularized(task.network):
            raise InputError(
                "robustquant regularizes convolutions but the first, and there are no others. Leave it out."
            )
        before = mean_kurtosis(task.network)
        details = self.train(task.network, task)
        details["training"] |= {"kurtosis_before": before, "kurtosis_after": mean_kurtosis(task.network)}
        model, _ = super().fit(task)
        return model, details

    def losses(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Iterable[Tensor]:
        """Cross-entropy and KURE."""
        spread = torch.stack([(kurtosis(weight) - TARGET).square() for weight in regularized(model)]).mean()
        yield F.cross_entropy(model(x), y) + self.settings.kurtosis_weight * spread
