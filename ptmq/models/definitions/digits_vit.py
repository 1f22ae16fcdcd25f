"""A vision transformer for the digits: timm's, small."""

from torch import nn


def digits_vit() -> nn.Module:
    """timm's VisionTransformer with 16 patches, 4 blocks of width 64: (batch, 1, 8, 8) -> (batch, 10) logits."""
    from ptmq.models.libraries import timm_model

    return timm_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=64, depth=4,
        num_heads=4, mlp_ratio=2,
    )  # fmt: skip
