"""What is measured: networks with random weights, random images of their size, and how often."""

from collections.abc import Callable, Sequence

import torch

from ptmq.common.bits import BitGroups, BitWidth
from ptmq.common.device import memory_format
from ptmq.models.backbone import CNN_GROUPS
from ptmq.network.model import MultiBitModel
from ptmq.network.place import QuantizationSpec

GROUPS = BitGroups(*CNN_GROUPS.values())
SHAPES = {"cifar10": (3, 32, 32), "digits": (1, 8, 8), "imagenet": (3, 224, 224)}
DRAWN = 64  # images from which an iteration draws its batch
BUDGET = 20  # seconds in which something is repeated


def random_images(name: str, count: int) -> torch.Tensor:
    """Images of the size that the dataset has, (count, ...)."""
    x = torch.randn(count, *SHAPES[name], generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=memory_format(x))


def random_network(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A network with random weights, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


def random_model(
    build: Callable[[], torch.nn.Module], blocks: Sequence[str] | None, widths: Sequence[BitWidth], device: torch.device
) -> MultiBitModel:
    """A network with random weights and with quantizers, not calibrated."""
    return MultiBitModel(random_network(build), QuantizationSpec(blocks, widths)).to(device)


def wait(device: torch.device) -> None:
    """Until what a GPU was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def few(repeats: int) -> int:
    """How often something is measured that takes minutes, where iterations are measured `repeats` times."""
    return max(1, repeats // 30)
