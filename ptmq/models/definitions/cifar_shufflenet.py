"""ShuffleNetV2 x0.5 for CIFAR-10: torchvision's network with a stem that keeps the size of the image."""

from torch import nn


def cifar_shufflenet() -> nn.Module:
    """Stride 1 and no pooling in the stem: (batch, 3, 32, 32) -> (batch, 10) logits."""
    from torchvision.models import ShuffleNetV2

    network = ShuffleNetV2([4, 8, 4], [24, 48, 96, 192, 1024], num_classes=10)
    network.conv1[0].stride = (1, 1)
    network.maxpool = nn.Identity()
    return network
