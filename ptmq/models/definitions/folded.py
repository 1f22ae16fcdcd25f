"""Networks whose checkpoints were published with BatchNorm already folded into the convolutions."""

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def without_norms(network: nn.Module) -> nn.Module:
    """Fold, in place, every BatchNorm that follows a convolution in an nn.Sequential; weights keep their names."""
    for parent in network.modules():
        if isinstance(parent, nn.Sequential):
            for number in range(len(parent) - 1):
                layer, norm = parent[number], parent[number + 1]
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    parent[number] = fuse_conv_bn_eval(layer.eval(), norm.eval())
                    parent[number + 1] = nn.Identity()
    return network


def mobilenet_v2_folded() -> nn.Module:
    """torchvision's MobileNetV2 without BatchNorm: (batch, 3, 224, 224) -> (batch, 1000) logits."""
    from torchvision.models import mobilenet_v2

    return without_norms(mobilenet_v2())
