"""Networks of timm as torch.fx can follow them."""

from typing import Any

from torch import nn


def timm_model(name: str, **options: Any) -> nn.Module:
    """timm's network `name` with random weights; attention as separate products, not as one fused kernel."""
    import timm
    from timm.layers import set_fused_attn

    set_fused_attn(False)  # the fused kernel hides the attention products from torch.fx
    return timm.create_model(name, **options)


def digits_vit() -> nn.Module:
    """timm's VisionTransformer with 16 patches, 4 blocks of width 64: (batch, 1, 8, 8) -> (batch, 10) logits."""
    return timm_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=64, depth=4,
        num_heads=4, mlp_ratio=2,
    )  # fmt: skip
