"""A small vision transformer for the 8x8 digits, made of timm's own blocks."""

from torch import nn


def digits_vit() -> nn.Module:
    """timm's VisionTransformer with 16 patches, 4 blocks of width 64: (batch, 1, 8, 8) -> (batch, 10) logits."""
    import timm
    from timm.layers import set_fused_attn

    set_fused_attn(False)  # the fused kernel hides the attention products from torch.fx
    return timm.models.VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2
    )
