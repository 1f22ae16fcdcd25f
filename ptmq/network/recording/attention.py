"""Fused attention as its parts: projections, two products and a softmax, each of which can be quantized.

The arithmetic is that of torch's functions of the same names, at inference; images come first in every tensor.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmq.common.errors import InputError


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q · scale · kᵀ + mask) · v: (..., l, e), (..., s, e) and (..., s, v) -> (..., l, v)."""
    if enable_gqa:
        groups = query.size(-3) // key.size(-3)
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    query = query * (query.size(-1) ** -0.5 if scale is None else scale)
    attention = query @ key.transpose(-2, -1)  # (..., l, s)
    if is_causal:
        attn_mask = torch.ones(attention.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        attention = attention + additive(attn_mask)
    return attention.softmax(dim=-1) @ value


def additive(mask: Tensor) -> Tensor:
    """A mask that is added: True of a boolean one lets pass."""
    return torch.zeros(()).masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else mask


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Of nn.MultiheadAttention: (l, n, e), (s, n, e) and (s, n, e) -> (l, n, e) and the attention, (n, l, s)."""
    if query.dim() != 3 or bias_k is not None or add_zero_attn or static_k is not None or static_v is not None:
        raise InputError(
            "nn.MultiheadAttention with add_bias_kv, add_zero_attn, or without images as a dimension is not followed. "
            "Compute it with torch.matmul and softmax."
        )
    weights: Any = (q_proj_weight, k_proj_weight, v_proj_weight)
    if in_proj_weight is not None and query is key and key is value:
        q, k, v = F.linear(query.transpose(0, 1), in_proj_weight, in_proj_bias).chunk(3, dim=-1)
    else:
        if in_proj_weight is not None:
            weights = in_proj_weight.chunk(3)
        biases: Any = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
        given = zip((query, key, value), weights, biases, strict=True)
        q, k, v = (F.linear(x.transpose(0, 1), weight, bias) for x, weight, bias in given)
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # (n, heads, tokens, e / heads)
    attention = (q * q.size(-1) ** -0.5) @ k.transpose(-2, -1)  # (n, heads, l, s)
    masks = [] if attn_mask is None else [_inverted(attn_mask)]
    if masks and masks[0].dim() == 3:
        masks[0] = masks[0].unflatten(0, (-1, num_heads))  # (n, heads, l, s)
    if key_padding_mask is not None:
        masks.append(_inverted(key_padding_mask)[:, None, None])  # (n, 1, 1, s)
    for mask in masks:
        attention = attention + mask
    attention = attention.softmax(dim=-1)
    out = (attention @ v).transpose(1, 2).flatten(2)  # (n, l, e)
    out = F.linear(out, out_proj_weight, out_proj_bias).transpose(0, 1)
    if not need_weights:
        return out, None
    return out, attention.mean(dim=1) if average_attn_weights else attention


def _inverted(mask: Tensor) -> Tensor:
    """A mask of nn.MultiheadAttention, where True keeps out, as one that is added."""
    return additive(~mask) if mask.dtype == torch.bool else mask


TAKEN_APART: dict[Callable, Callable] = {
    F.scaled_dot_product_attention: scaled_dot_product_attention,
    F.multi_head_attention_forward: multi_head_attention_forward,
}
