"""Networks of timm as torch.fx can follow them."""

from torch import nn


def timm_model(name: str, **options) -> nn.Module:
    """timm's network `name` with random weights; attention as separate products, not as one fused kernel."""
    import timm
    from timm.layers import set_fused_attn

    set_fused_attn(False)  # the fused kernel hides the attention products from torch.fx
    return timm.create_model(name, **options)
